"""The commands `migrate up` and `migrate status`."""

import asyncio

from worker.cli.output import say, show, show_json, show_table
from worker.cli.parameters import DEFAULTS, Json, WithSettings


def up(*, json: Json = False, settings: WithSettings = DEFAULTS) -> None:
    """Apply what is not applied yet."""
    from worker.app.jobs import migrate_up

    applied = asyncio.run(migrate_up(settings))
    if json:
        show_json({"applied": applied})
        return
    for version in applied:
        show(f"applied {version}")
    say(f"the schema {settings.database.schema} is up to date")


def status(*, json: Json = False, settings: WithSettings = DEFAULTS) -> int:
    """Show what is applied."""
    from worker.app.jobs import migration_status

    found = asyncio.run(migration_status(settings))
    if json:
        show_json([one._asdict() for one in found])
    else:
        rows = [(one.version, one.name, "yes" if one.applied else "no") for one in found]
        show_table(("version", "name", "applied"), rows, empty="there are no migrations")
    return 0 if all(one.applied for one in found) else 1
