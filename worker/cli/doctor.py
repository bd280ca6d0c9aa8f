"""The command `doctor`."""

import asyncio

from worker.cli.masking import redact
from worker.cli.output import show, show_json
from worker.cli.parameters import DEFAULTS, Json, WithSettings, WithSources
from worker.ops.doctor import Finding, has_failed


def doctor(
    *, json: Json = False, settings: WithSettings = DEFAULTS, sources: WithSources
) -> int:
    """Check everything."""
    from worker.app.doctor_job import doctor as look

    def tell(finding: Finding) -> None:
        hint = f"\n      {finding.hint}" if finding.hint else ""
        line = f"{finding.status:<4}  {finding.check}: {finding.detail}{hint}"
        show(redact(line, sources.secrets))

    found = asyncio.run(look(settings, (lambda _: None) if json else tell))
    if json:
        show_json(
            [
                one._replace(detail=redact(one.detail, sources.secrets))._asdict()
                for one in found
            ]
        )
    return 1 if has_failed(found) else 0
