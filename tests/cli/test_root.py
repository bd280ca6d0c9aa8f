"""What the command line is as a whole: its help, its exit codes, what it imports."""

import functools
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli.commands import COMMANDS, Family
from worker.cli.root import main
from worker.config import Settings
from worker.errors import BrokerUnavailable, ConfigError

ROOT = Path(__file__).parents[2]
HEAVY = ("aiokafka", "asyncpg", "aiohttp", "numpy", "opentelemetry", "semantic_text_splitter")
WORDS = [
    (one.name, inner.name) if isinstance(one, Family) else (one.name,)
    for one in COMMANDS
    for inner in (one.commands if isinstance(one, Family) else (one,))
]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Run a child that finds the project."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def command_of(words: tuple[str, ...]):
    for one in COMMANDS:
        if one.name == words[0]:
            return next(i for i in one.commands if i.name == words[1]) if words[1:] else one
    raise AssertionError(words)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_its_own(words, embedfleet):
    ended = embedfleet(*words, "--help")
    assert ended.code == 0
    assert command_of(words).help.split(":")[0] in " ".join(ended.out.split())
    examples = ended.out.split("Example")[-1]
    assert f"embedfleet {' '.join(words)}" in examples


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_example_is_a_command_line_that_is_understood(words, monkeypatch, tmp_path):
    """Parsed and bound to the command, which is replaced by one that does nothing."""
    command = command_of(words)
    module, _, name = command.path.partition(":")
    loaded = importlib.import_module(module)
    seen = []
    original = getattr(loaded, name)

    def stand_in(*args, **kwargs):
        seen.append((args, kwargs))

    monkeypatch.setattr(loaded, name, functools.wraps(original)(stand_in))
    (tmp_path / "fleet.toml").write_text("")
    for example in command.examples:
        assert main(shlex.split(example.rpartition("| ")[2])[1:]) == 0
    assert len(seen) == len(command.examples)


def test_without_a_command_the_help_of_all_is_shown_in_groups(embedfleet):
    ended = embedfleet()
    assert ended.code == 0
    places = [ended.out.index(f"─ {group} ") for group in ("Work", "Set up", "Look", "Operate")]
    assert places == sorted(places)
    for one in COMMANDS:
        assert f"│ {one.name} " in ended.out


def test_help_imports_no_client_library():
    script = (
        "import sys; from worker.cli.root import main; main(['--help']); "
        "main(['publish', '--help']); main(['config']); "
        f"print('imported', [name for name in {HEAVY} if name in sys.modules])"
    )
    ended = python("-c", script)
    assert ended.stdout.splitlines()[-1] == "imported []", ended.stderr


def test_the_kafka_commands_do_not_import_the_database_and_the_other_way_round():
    for module, foreign in (
        ("worker.app.publish_job", "asyncpg"),
        ("worker.cli.migrate", "aiokafka"),
    ):
        script = f"import sys, {module}; print({foreign!r} in sys.modules)"
        run = python("-c", script)
        assert run.stdout.strip() == "False", run.stderr


@pytest.fixture
def command_that_ends(monkeypatch):
    """`version`, ending as the test says."""

    def replace(error):
        def version():
            raise error

        monkeypatch.setattr("worker.cli.version.version", version)
        return main(["version"])

    return replace


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("cannot work"), 2),
        (BrokerUnavailable("nobody there"), 2),
        (ExceptionGroup("", [ExceptionGroup("", [ConfigError("cannot work")])]), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_end_has_its_exit_code_and_no_traceback(error, code, command_that_ends, capsys):
    assert command_that_ends(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == (code == 2)
    assert ("cannot work" in err or "nobody there" in err) == (code == 2)


def test_a_defect_of_ours_is_not_hidden(command_that_ends):
    with pytest.raises(ZeroDivisionError):
        command_that_ends(ZeroDivisionError())
    with pytest.raises(ExceptionGroup):
        command_that_ends(ExceptionGroup("", [ConfigError("x"), ZeroDivisionError()]))


def test_a_reader_that_leaves_is_no_traceback():
    script = (
        "import os, sys; from worker.cli.root import main; "
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        "sys.exit(main(['config', '--explain']))"
    )
    ended = python("-c", script)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [("config", "--explain"), ("version",), ("--help",)])
def test_a_full_disk_is_one_sentence(arguments):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "embedfleet: cannot write: No space left on device\n"


def test_no_help_shows_the_inside_of_a_default(embedfleet):
    for words in WORDS:
        assert "[default: (" not in embedfleet(*words, "--help").out


def test_the_module_runs_and_knows_its_version():
    ended = python("-m", "worker", "--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout[0].isdigit()


def test_run_hands_the_settings_to_the_worker_and_ends_with_its_code(embedfleet, monkeypatch):
    seen = []

    def run(settings):
        seen.append(settings)
        return 7

    import worker.app.worker

    monkeypatch.setattr(worker.app.worker, "run", run)
    assert embedfleet("run", "--kafka.group", "mine").code == 7
    assert [one.kafka.group for one in seen] == ["mine"]
    assert isinstance(seen[0], Settings)


def test_version_shows_ours_and_the_libraries(embedfleet):
    versions = embedfleet("version", "--json").json
    assert {"embedfleet", "python", "aiokafka", "asyncpg"} <= versions.keys()
    assert embedfleet("version").out.startswith(f"embedfleet {versions['embedfleet']}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rnu",), 'Did you mean "run"?'),
        (("topics", "creat"), 'Did you mean "create"?'),
        (("search", "words", "--tenant", "x"), "--collection"),
        (("search", "words", "--collection", "c", "--tenant", "x", "--k", "0"), "--k"),
        (("collections", "create", "x", "--model", "m"), "--dimensions"),
        (("partitions", "skip", "documents", "--to", "5"), "TOPIC/NUMBER"),
        (("partitions", "skip", "documents/x", "--to", "5"), "TOPIC/NUMBER"),
        (("partitions", "skip", f"documents/{2**31}", "--to", "5"), "is too large"),
        (("partitions", "skip", "documents/1", "--to", f"{2**63}"), "--to"),
        (("partitions", "resume", "documents/" + "9" * 5000), "is too large"),
        (("topics", "create", "--retention-hours", "5"), "--cleanup delete"),
        (("topics", "create", "--partitions", "0"), "--partitions"),
        (("version", "really"), "'really' is one argument too many"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, words, embedfleet):
    ended = embedfleet(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.startswith("embedfleet: ")
    assert ended.err.count("\n") == 1
