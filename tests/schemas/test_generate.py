import os
import re
from dataclasses import fields, is_dataclass

import pytest

from schemas.dead_letter import Reason
from tests.support import generate
from tests.support.generate import BLOCKS, configuration, reasons, replace_blocks, table
from worker.config import Settings


def leaves(options, path=()):
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield ".".join((*path, field.name))


def test_a_block_is_replaced_and_the_rest_is_left():
    text = "before\n<!-- generated:x -->old\nold<!-- /generated:x -->\nafter {y}\\1"

    made = replace_blocks(text, {"x": lambda: r"new \1"})

    assert made == (
        "before\n<!-- generated:x -->\n\nnew \\1\n\n<!-- /generated:x -->\nafter {y}\\1"
    )
    assert replace_blocks(made, {"x": lambda: r"new \1"}) == made


def test_a_block_without_a_place_is_no_error():
    assert replace_blocks("text", {"x": lambda: "new"}) == "text"


def test_a_cell_does_not_break_its_table():
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


def test_the_table_of_reasons_has_every_code():
    assert re.findall(r"^\| `(\w+)`", reasons(), flags=re.MULTILINE) == [*Reason]


def test_the_table_of_settings_has_every_setting_with_a_meaning():
    rows = [line.strip("| ").split(" | ") for line in configuration().splitlines()[2:]]

    assert [row[0].strip("`") for row in rows] == list(leaves(Settings()))
    assert all(row[-1] for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        "| `queue.max_bytes` | `EMBEDFLEET_QUEUE_MAX_BYTES` | `67108864` | `>= 1024` |",
        "| `ingest.nul` | `EMBEDFLEET_INGEST_NUL` | `replace` | `replace` or `dead_letter` |",
        "| `startup_timeout_seconds` | `EMBEDFLEET_STARTUP_TIMEOUT_SECONDS` | `60` | `> 0` |",
        "| `kafka.tls_ca_file` | `EMBEDFLEET_KAFKA_TLS_CA_FILE` | none |  |",
    ],
)
def test_a_row_says_name_variable_default_and_bounds(row):
    assert row in configuration()


def test_the_blocks_of_the_readme_are_current():
    text = generate.README.read_text(encoding="utf-8")

    assert replace_blocks(text, BLOCKS) == text, "run `make schemas`"


def test_the_writer_writes_what_is_out_of_date_and_only_that(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "README", tmp_path / "README.md")
    monkeypatch.setattr(generate, "GENERATED", {"a/b.json": lambda: "{}\n"})
    (tmp_path / "README.md").write_text("<!-- generated:reasons --><!-- /generated:reasons -->")

    generate.main()

    assert (tmp_path / "a" / "b.json").read_text() == "{}\n"
    assert "`oversize`" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"wrote a{os.sep}b.json\nwrote README.md\n"
    generate.main()
    assert capsys.readouterr().out == ""
