"""The light distribution: what it holds, and that it works where nothing else of ours is."""

import ast
import asyncio
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas"
MODULES = sorted(SCHEMAS.glob("*.py"))

READ_ONLY = """
import importlib.util, sys
from embedfleet_schemas import codec, dead_letter, events, records, specification

assert importlib.util.find_spec("aiokafka") is None
assert importlib.util.find_spec("schemas") is None
event = events.DocumentDeleted(tenant="acme", collection="docs", id="42", version=1)
record = records.new_record(event)
assert codec.decode_record(record.key, record.value, (), codec.Limits()).event == event
assert specification.async_api()["asyncapi"] == "3.0.0"
print("read", event.id)
"""
ROUND_TRIP = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer, TopicPartition
from embedfleet_schemas.codec import Limits, decode_record
from embedfleet_schemas.publisher import Publisher, SyncPublisher

servers, topic = sys.argv[1:]
with SyncPublisher(servers, topic) as publisher:
    publisher.upsert("acme", "docs", "a/b", version=1, text="Grüße", metadata={"n": 1})

async def main():
    async with Publisher(servers, topic) as publisher:
        await publisher.delete("acme", "docs", "a/b", version=2)
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    for _ in range(2):
        record = await consumer.getone()
        print(decode_record(record.key, record.value, record.headers, Limits()).event)
    await consumer.stop()

asyncio.run(main())
"""


def imports(module):
    """Every import of a module: how many dots, and what."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or node.names[0].name


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_both_distributions_have_one_version():
    assert project(SCHEMAS)["version"] == project(ROOT)["version"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_a_module_reaches_its_neighbours_by_relative_imports_only(module):
    """The package has another name in the light distribution."""
    assert {name.split(".")[0] for level, name in imports(module) if level == 0}.isdisjoint(
        {"schemas", "worker", "embedfleet_schemas"}
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_only_the_publisher_needs_more_than_msgspec(module):
    allowed = {"schemas", "msgspec"} | sys.stdlib_module_names
    if module.stem == "delivery":
        allowed |= {"aiokafka"}
    if module.stem == "publisher":
        allowed |= {"opentelemetry"}

    found = list(imports(module))

    assert {name.split(".")[0] for level, name in found if level == 0} <= allowed
    assert module.stem == "publisher" or not {(1, "publisher"), (1, "delivery")} & set(found)


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.real
async def test_it_works_alone_in_an_environment_of_its_own(kafka_server, topic, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"

    def install():
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", tmp_path, SCHEMAS)
        (wheel,) = tmp_path.glob("embedfleet_schemas-*.whl")
        venv.create(tmp_path / "venv", with_pip=True)
        pip = (python, "-m", "pip", "install", "--quiet", "--no-compile")
        run(*pip, wheel)
        read = run(python, "-W", "error", "-c", READ_ONLY, cwd=tmp_path)
        run(*pip, f"{wheel}[kafka]")
        servers = kafka_server.bootstrap_servers
        return (
            wheel,
            read,
            run(python, "-W", "error", "-c", ROUND_TRIP, servers, topic, cwd=tmp_path),
        )

    wheel, read, round_trip = await asyncio.to_thread(install)

    assert read == "read 42\n"
    upsert, delete = round_trip.splitlines()
    assert upsert.startswith("DocumentUpserted(tenant='acme', collection='docs', id='a/b', ver")
    assert "text='Grüße'" in upsert
    assert delete.startswith("DocumentDeleted(tenant='acme', collection='docs', id='a/b', ver")
    names = zipfile.ZipFile(wheel).namelist()
    assert "embedfleet_schemas/json/event.schema.json" in names
    assert "embedfleet_schemas/py.typed" in names
    assert not [name for name in names if name.endswith(".sql")]
