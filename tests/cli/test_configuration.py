"""Where settings come from, what is refused, and how that is said."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from worker.cli.configuration import checked
from worker.cli.setting_names import ALIASES, all_settings
from worker.config import Settings


@pytest.fixture
def setting(embedfleet):
    """Value and origin of one setting, with some arguments."""

    def look(name: str, *arguments: str):
        ended = embedfleet("config", "--json", *arguments)
        assert ended.code == 0, ended.err
        (found,) = [one for one in ended.json if one["name"] == name]
        return found["value"], found["origin"]

    return look


def write(text: str, name: str = "embedfleet.toml") -> str:
    Path(name).write_text(text)
    return name


def test_a_setting_nobody_names_has_its_default(setting):
    assert setting("kafka.group") == ("embedfleet", "default")


def test_the_toml_file_of_the_folder_is_read(setting):
    write('[kafka]\n\ngroup = "from-file"\n')
    assert setting("kafka.group") == ("from-file", "embedfleet.toml:3")


def test_a_variable_beats_the_file(setting, monkeypatch):
    write('[kafka]\ngroup = "from-file"\n')
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GROUP", "from-variable")
    assert setting("kafka.group") == ("from-variable", "EMBEDFLEET_KAFKA_GROUP")


def test_a_flag_beats_a_variable(setting, monkeypatch):
    write('[kafka]\ngroup = "from-file"\n')
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GROUP", "from-variable")
    found = setting("kafka.group", "--kafka.group", "from-flag")
    assert found == ("from-flag", "flag --kafka.group")


def test_one_source_does_not_hide_another_settings_source(setting, monkeypatch):
    write('[kafka]\ngroup = "from-file"\nclient_id = "from-file"\n')
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GROUP", "from-variable")
    assert setting("kafka.client_id", "--kafka.dead-letter-topic", "x")[0] == "from-file"


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_a_variable_people_have_set_already_is_accepted(alias, name, setting, monkeypatch):
    monkeypatch.setenv(alias, "http://known")
    assert setting(name) == ("http://known", alias)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_our_variable_beats_the_one_people_have_set(alias, name, setting, monkeypatch):
    monkeypatch.setenv(alias, "http://known")
    ours = all_settings()[name].variable
    monkeypatch.setenv(ours, "http://ours")
    assert setting(name) == ("http://ours", ours)


def test_a_known_variable_of_others_beats_the_file(setting, monkeypatch):
    write('[database]\nurl = "postgresql://file/x"\n')
    monkeypatch.setenv("DATABASE_URL", "postgresql://variable/x")
    assert setting("database.url")[1] == "DATABASE_URL"


def test_an_empty_variable_is_unset(setting, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GROUP", "")
    assert setting("kafka.group") == ("embedfleet", "default")


def test_a_file_is_named_by_a_flag_before_or_after_the_command(embedfleet):
    name = write('[kafka]\ngroup = "named"\n', "other.toml")
    for arguments in (("--config", name, "config"), ("config", "--config", name)):
        assert "named" in embedfleet(*arguments).out


def test_a_file_is_named_by_a_variable_and_a_flag_beats_it(setting, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_CONFIG", write('[kafka]\ngroup = "a"\n', "a.toml"))
    other = write('[kafka]\ngroup = "b"\n', "b.toml")
    assert setting("kafka.group") == ("a", "a.toml:2")
    assert setting("kafka.group", "--config", other) == ("b", "b.toml:2")


@pytest.mark.parametrize("text", ["a,b", "a b", " a , b "])
def test_a_list_in_a_variable_is_split_at_commas_and_blanks(text, setting, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_KAFKA_TOPICS", text)
    assert setting("kafka.topics")[0] == ["a", "b"]


def test_a_list_is_a_list_in_toml_and_a_repeated_flag(setting):
    write('[kafka]\ntopics = ["a", "b"]\n')
    assert setting("kafka.topics")[0] == ["a", "b"]
    assert setting("kafka.topics", "--kafka.topics", "c", "--kafka.topics", "d")[0] == [
        "c",
        "d",
    ]


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_none_switches_off_what_can_be_switched_off(source, setting, monkeypatch):
    arguments = ()
    if source == "flag":
        arguments = ("--telemetry.admin-port", "none")
    elif source == "variable":
        monkeypatch.setenv("EMBEDFLEET_TELEMETRY_ADMIN_PORT", "none")
    else:
        write('[telemetry]\nadmin_port = "none"\n')
    value, origin = setting("telemetry.admin_port", *arguments)
    assert value is None
    assert origin != "default"


def test_switches_numbers_and_paths_come_from_every_source(setting, monkeypatch):
    write('startup_timeout_seconds = 5\n[kafka]\ntls-ca-file = "ca.pem"\n')
    monkeypatch.setenv("EMBEDFLEET_TELEMETRY_DEBUG_LOOP", "true")
    assert setting("startup_timeout_seconds") == (5, "embedfleet.toml:1")
    assert setting("kafka.tls_ca_file") == ("ca.pem", "embedfleet.toml:3")
    assert setting("telemetry.debug_loop")[0] is True
    assert setting("telemetry.debug_loop", "--telemetry.no-debug-loop")[0] is False


def test_dotted_keys_of_toml_are_found_with_their_line(setting):
    write('# a comment\nkafka.group = "dotted"\n')
    assert setting("kafka.group") == ("dotted", "embedfleet.toml:2")


REFUSED = {
    "unknown key": (
        "[kafka]\nbootstap_servers = 'x'\n",
        "no setting kafka.bootstap_servers; did you mean kafka.bootstrap_servers?",
    ),
    "unknown table": (
        "[kafak]\ngroup = 'x'\n",
        "embedfleet.toml:1: there is no table [kafak]; did you mean kafka?",
    ),
    "unknown top level": ("startup_timeout = 5\n", "did you mean startup_timeout_seconds?"),
    "no toml": ("[kafka\n", "embedfleet.toml is no TOML"),
    "wrong type": ("[kafka]\ngroup = 5\n", "kafka.group (embedfleet.toml:2): expected `str`"),
    "number as text": (
        "[queue]\nmax_documents = '5'\n",
        "queue.max_documents (embedfleet.toml:2): expected `int`, got `str`",
    ),
    "table for a value": ("[kafka.group]\nx = 1\n", "kafka.group"),
    "value for a table": ("kafka = 5\n", "there is no setting kafka"),
    "bad bound": (
        "[kafka]\nmax_poll_records = 0\n",
        "kafka.max_poll_records (embedfleet.toml:2): expected `int` >= 1",
    ),
    "bad choice": ("[ingest]\nnul = 'drop'\n", "ingest.nul (embedfleet.toml:2)"),
    "empty list": ("[kafka]\ntopics = []\n", "kafka.topics (embedfleet.toml:2)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_in_the_file_is_one_sentence_with_its_line(case, embedfleet):
    text, sentence = REFUSED[case]
    write(text)
    ended = embedfleet("config")
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_a_file_that_is_not_utf_8_is_refused(embedfleet):
    Path("embedfleet.toml").write_bytes(b"[kafka]\ngroup = '\xff'\n")
    assert "not UTF-8" in embedfleet("config").err


def test_a_file_that_was_asked_for_must_be_there(embedfleet, monkeypatch):
    ended = embedfleet("config", "--config", "nowhere.toml")
    assert (ended.code, "nowhere.toml cannot be read" in ended.err) == (2, True)
    monkeypatch.setenv("EMBEDFLEET_CONFIG", "elsewhere.toml")
    assert "elsewhere.toml cannot be read" in embedfleet("config").err


def test_an_unknown_variable_of_ours_is_refused_with_the_nearest_name(embedfleet, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GRUOP", "x")
    ended = embedfleet("config")
    assert ended.code == 2
    assert "EMBEDFLEET_KAFKA_GRUOP" in ended.err
    assert "did you mean EMBEDFLEET_KAFKA_GROUP?" in ended.err


def test_an_unknown_flag_is_refused_with_the_nearest_name(embedfleet):
    ended = embedfleet("config", "--kafka.gruop", "x")
    assert ended.code == 2
    assert "Did you mean --kafka.group?" in ended.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMBEDFLEET_SERVICE_HOST", "10.0.0.1"),
        ("EMBEDFLEET_ADMIN_SERVICE_PORT_METRICS", "9464"),
        ("EMBEDFLEET_PORT", "tcp://10.0.0.1:9464"),
        ("EMBEDFLEET_ADMIN_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("EMBEDFLEET_KAFKA_JARS", "jars"),
        ("EMBEDFLEET_TEST_KAFKA", "localhost:1"),
    ],
)
def test_variables_that_are_no_settings_are_left_alone(name, value, embedfleet, monkeypatch):
    """Kubernetes sets some for every Service of our name; a pod must start all the same."""
    monkeypatch.setenv(name, value)
    assert embedfleet("config").code == 0


def test_a_variable_that_a_setting_refers_to_is_known(embedfleet, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_DATABASE_PASSWORD", "hunter22")
    assert embedfleet("config").code == 2
    referring = ("--database.password-variable", "EMBEDFLEET_DATABASE_PASSWORD")
    assert embedfleet("config", *referring).code == 0


def test_a_bound_is_checked_wherever_the_value_comes_from(embedfleet, monkeypatch):
    ended = embedfleet("config", "--kafka.commit-interval-seconds", "61")
    assert ended.err == (
        "embedfleet: kafka.commit_interval_seconds (flag --kafka.commit-interval-seconds): "
        "expected `float` <= 60.0\n"
    )
    monkeypatch.setenv("EMBEDFLEET_TELEMETRY_ADMIN_PORT", "70000")
    ended = embedfleet("config")
    assert (ended.code, ended.out) == (2, "")
    assert "telemetry.admin_port (EMBEDFLEET_TELEMETRY_ADMIN_PORT)" in ended.err


def test_a_value_of_the_wrong_kind_names_its_source(embedfleet, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_KAFKA_DRAIN_SECONDS", "soon")
    ended = embedfleet("config")
    assert ended.code == 2
    assert "EMBEDFLEET_KAFKA_DRAIN_SECONDS" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--kafka.drain-seconds", "29"), "or two workers evict each other for ever"),
        (("--kafka.security-protocol", "SASL_SSL"), "needs kafka.sasl_mechanism"),
        (("--database.pool-min", "60"), "database.pool_min must not exceed"),
        (("--embedding.concurrency", "60"), "embedding.connections_per_host"),
        (("--kafka.tls-key-file", "k.pem"), "come together or not at all"),
    ],
)
def test_a_relation_that_cannot_work_is_one_sentence_with_its_reason(flags, reason, embedfleet):
    ended = embedfleet("config", *flags)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert ended.err.count("\n") == 1


def test_every_default_keeps_to_its_own_bounds():
    for setting in all_settings().values():
        if setting.default is not None:
            assert checked(setting.default, setting, "default") == setting.default


def test_every_field_of_the_settings_is_a_setting_with_a_description():
    def count(options) -> int:
        hints = [field.default_factory for field in fields(options)]
        return sum(count(one) if is_dataclass(one) else 1 for one in hints)

    assert len(all_settings()) == count(Settings)
    assert all(one.description for one in all_settings().values())


def test_explain_names_flag_variable_default_and_meaning(embedfleet):
    out = embedfleet("config", "--explain").out
    assert "--kafka.commit-interval-seconds  EMBEDFLEET_KAFKA_COMMIT_INTERVAL_SECONDS" in out
    assert "How often progress is written" in out
    assert "> 0, <= 60; default 1]" in out
