"""Every failure of a provider has a class; what is about all documents is never about one."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import Reason
from worker.config import DialectName
from worker.core import taxonomy
from worker.core.failure_class import FailureClass
from worker.core.taxonomy import (
    TABLE,
    ErrorAnswer,
    classify,
    classify_failure,
    reason_of,
)

CONTENT, THROTTLE, QUOTA, TRANSIENT, AUTH, FORBIDDEN, CONFIG, BAD_OUTPUT = FailureClass
DIALECTS = get_args(DialectName)
QUOTED = "a text that says: invalid api key, model not found, Budget has been exceeded"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (ErrorAnswer(400), CONTENT),
        (ErrorAnswer(413), CONTENT),
        (ErrorAnswer(422), CONTENT),
        (ErrorAnswer(400, code="content_filter", param="prompt"), CONTENT),
        (ErrorAnswer(400, code="content_filter", param="safety"), CONTENT),
        (ErrorAnswer(400, code="context_length_exceeded"), CONTENT),
        (ErrorAnswer(400, param="input"), CONTENT),
        (ErrorAnswer(400, param="input.0"), CONTENT),
        (ErrorAnswer(422, type="Tokenizer"), CONTENT),
        (ErrorAnswer(400, type="Empty"), CONTENT),
        (ErrorAnswer(400, message="the text is too long"), CONTENT),
        (ErrorAnswer(400, message=f"this is no good: '{QUOTED}'"), CONTENT),
        (ErrorAnswer(400, message=f"{'x' * 60} {QUOTED}"), CONTENT),
        (ErrorAnswer(400, should_retry=False), CONTENT),
        (ErrorAnswer(400, should_retry=True), TRANSIENT),
        (ErrorAnswer(429), THROTTLE),
        (ErrorAnswer(429, hinted=True), THROTTLE),
        (ErrorAnswer(429, code="rate_limit_exceeded", type="tokens"), THROTTLE),
        (ErrorAnswer(429, type="Overloaded"), THROTTLE),
        (ErrorAnswer(429, type="RESOURCE_EXHAUSTED"), THROTTLE),
        (ErrorAnswer(429, message="You exceeded your current quota"), THROTTLE),
        (ErrorAnswer(503, hinted=True), THROTTLE),
        (ErrorAnswer(429, code="insufficient_quota"), QUOTA),
        (ErrorAnswer(429, type="insufficient_quota"), QUOTA),
        (ErrorAnswer(429, code="insufficient_quota", hinted=True), QUOTA),
        (ErrorAnswer(429, type="budget_exceeded"), QUOTA),
        (ErrorAnswer(400, code="billing_hard_limit_reached"), QUOTA),
        (ErrorAnswer(403, code="quota_exceeded"), QUOTA),
        (ErrorAnswer(402), QUOTA),
        (ErrorAnswer(408), TRANSIENT),
        (ErrorAnswer(409), TRANSIENT),
        (ErrorAnswer(424, type="Backend"), TRANSIENT),
        (ErrorAnswer(425), TRANSIENT),
        (ErrorAnswer(500), TRANSIENT),
        (ErrorAnswer(500, code="model_not_found"), TRANSIENT),
        (ErrorAnswer(502), TRANSIENT),
        (ErrorAnswer(503, type="Unhealthy"), TRANSIENT),
        (ErrorAnswer(504), TRANSIENT),
        (ErrorAnswer(529), TRANSIENT),
        (ErrorAnswer(418), TRANSIENT),
        (ErrorAnswer(451), TRANSIENT),
        (ErrorAnswer(401), AUTH),
        (ErrorAnswer(401, should_retry=True), AUTH),
        (ErrorAnswer(403), FORBIDDEN),
        (ErrorAnswer(403, code="AccessDenied"), FORBIDDEN),
        (ErrorAnswer(403, code="account_deactivated"), AUTH),
        (ErrorAnswer(403, code="model_not_found"), CONFIG),
        (ErrorAnswer(403, code="content_filter"), CONTENT),
        (ErrorAnswer(498), AUTH),
        (ErrorAnswer(400, code="invalid_api_key"), AUTH),
        (ErrorAnswer(400, message="Incorrect API key provided: sk-..."), AUTH),
        (ErrorAnswer(400, code="API_KEY_INVALID"), AUTH),
        (ErrorAnswer(301), CONFIG),
        (ErrorAnswer(307), CONFIG),
        (ErrorAnswer(404), CONFIG),
        (ErrorAnswer(404, code="DeploymentNotFound"), CONFIG),
        (ErrorAnswer(405), CONFIG),
        (ErrorAnswer(501), CONFIG),
        (ErrorAnswer(400, code="model_not_found"), CONFIG),
        (ErrorAnswer(400, code="OperationNotSupported"), CONFIG),
        (ErrorAnswer(400, type="invalid_model", code="1500"), CONFIG),
        (ErrorAnswer(400, param="dimensions"), CONFIG),
        (ErrorAnswer(422, param="model"), CONFIG),
        (ErrorAnswer(400, message="Unrecognized request argument supplied: x"), CONFIG),
        (ErrorAnswer(400, message="The model `x` does not exist"), CONFIG),
        (ErrorAnswer(204), BAD_OUTPUT),
    ],
)
def test_an_answer_means_the_same_in_every_dialect(
    dialect: DialectName, answer: ErrorAnswer, meaning: FailureClass
):
    assert classify(dialect, answer) is meaning


OWN_ROWS = [
    ("litellm", ErrorAnswer(400, message="Budget has been exceeded! Current cost: 1"), QUOTA),
    (
        "litellm",
        ErrorAnswer(
            400, message="litellm.BadRequestError: OpenAIException - Budget has been exceeded!"
        ),
        QUOTA,
    ),
    ("litellm", ErrorAnswer(400, message="ExceededBudget: End User=x over budget."), QUOTA),
    ("litellm", ErrorAnswer(400, message="litellm.UnsupportedParamsError: Setting x"), CONFIG),
    (
        "litellm",
        ErrorAnswer(400, message="litellm.BadRequestError: LLM Provider NOT provided. Pass"),
        CONFIG,
    ),
    ("voyage", ErrorAnswer(400, message="Model voyage-0 is not supported. Supported"), CONFIG),
    (
        "jina",
        ErrorAnswer(422, message="[RID: 1a2b] Validation error: 'body -> model' unknown"),
        CONFIG,
    ),
    (
        "vllm",
        ErrorAnswer(400, message='Model "e5" does not support matryoshka representation'),
        CONFIG,
    ),
]


@pytest.mark.parametrize(("dialect", "answer", "meaning"), OWN_ROWS)
def test_a_dialect_has_rows_of_its_own(
    dialect: DialectName, answer: ErrorAnswer, meaning: FailureClass
):
    assert classify(dialect, answer) is meaning
    assert classify("openai", answer) is CONTENT


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ("litellm", "litellm.BadRequestError: the text 'Budget has been exceeded' is refused"),
        ("voyage", "Request to model 'voyage-3' failed. The max allowed tokens per batch is"),
        ("jina", "[RID: 1] Validation error: 'body -> jina-embeddings-v4' Each input list can"),
        ("jina", "[RID: 1] Validation error: 'body -> input' is too long"),
        (
            "vllm",
            "This model's maximum context length is 512 tokens, does not support matryoshka",
        ),
        ("mistral", "Too many tokens in batch. Max is 16384 got 17555"),
        ("ollama", "the input length exceeds the context length"),
    ],
)
def test_a_complaint_about_the_texts_is_content(dialect: DialectName, message: str):
    assert classify(dialect, ErrorAnswer(400, message=message)) is CONTENT


FILTERED, TOO_LONG, REJECTED = (
    Reason.CONTENT_FILTER,
    Reason.INPUT_TOO_LONG,
    Reason.REJECTED_INPUT,
)
REASONS = [
    (ErrorAnswer(400), REJECTED),
    (ErrorAnswer(422), REJECTED),
    (ErrorAnswer(400, type="Empty"), REJECTED),
    (ErrorAnswer(413), TOO_LONG),
    (ErrorAnswer(400, code="content_filter", param="prompt"), FILTERED),
    (ErrorAnswer(400, code="content_policy_violation"), FILTERED),
    (ErrorAnswer(400, type="ResponsibleAIPolicyViolation"), FILTERED),
    (ErrorAnswer(403, code="content_filter"), FILTERED),
    (ErrorAnswer(400, code="context_length_exceeded"), TOO_LONG),
    (ErrorAnswer(400, code="string_above_max_length", param="input[0]"), TOO_LONG),
    (ErrorAnswer(400, code="max_tokens_per_request"), TOO_LONG),
    (ErrorAnswer(400, message="This model's maximum context length is 8192"), TOO_LONG),
    (ErrorAnswer(400, message="Invalid 'input[3]': maximum input length is 8192"), TOO_LONG),
    (ErrorAnswer(400, message="Invalid 'input': string too long. Expected"), TOO_LONG),
    (ErrorAnswer(400, message="the input length exceeds the context length"), TOO_LONG),
    (ErrorAnswer(400, message="Too many tokens in batch. Max is 16384"), TOO_LONG),
    (ErrorAnswer(400, message="Input is too long."), TOO_LONG),
    (ErrorAnswer(500, message="input is too large to process"), REJECTED),
    (ErrorAnswer(400, message="this is no good: 'the input is too long'"), REJECTED),
    (ErrorAnswer(422, message="Too many inputs in request"), REJECTED),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("answer", "reason"), REASONS)
def test_a_refused_text_has_a_precise_reason(dialect: DialectName, answer, reason: Reason):
    assert reason_of(dialect, answer) is reason


OWN_REASONS = [
    ("voyage", "Request to model 'm' failed. The example at index 0 is too long"),
    ("voyage", "Request to model 'm' failed. The max allowed tokens per submitted batch is"),
    ("litellm", "litellm.ContextWindowExceededError: litellm.BadRequestError: too long"),
]


@pytest.mark.parametrize(("dialect", "message"), OWN_REASONS)
def test_a_dialect_says_too_long_in_its_own_words(dialect: DialectName, message: str):
    assert reason_of(dialect, ErrorAnswer(400, message=message)) is TOO_LONG
    assert reason_of("generic", ErrorAnswer(400, message=message)) is REJECTED


def test_what_no_row_knows_is_transient_and_has_no_precise_reason():
    answer = ErrorAnswer(0)
    assert not [row for row in TABLE if row.fits("openai", answer)]
    assert classify("openai", answer) is TRANSIENT
    assert reason_of("openai", answer) is REJECTED


@pytest.mark.parametrize(
    ("message", "matches"),
    [
        ("no key", True),
        ("NO MODEL", True),
        ("there is no key", True),
        ("no keep", False),
        ("'no key'", False),
        (f"{'x' * 40}no key", True),
        (f"{'x' * 41}no key", False),
    ],
)
def test_prose_is_known_by_its_first_words_and_not_by_what_it_quotes(message, matches):
    assert (taxonomy._prose("no key", "no model").match(message) is not None) is matches


@pytest.mark.parametrize(
    ("code", "matches"), [("quota", True), ("no_balance", True), ("quot", False)]
)
def test_a_code_is_known_by_any_of_its_parts(code, matches):
    assert (taxonomy._code("quota", "balance").search(code) is not None) is matches


def test_only_content_has_a_precise_reason():
    assert {row.meaning for row in TABLE if row.reason is not REJECTED} == {CONTENT}


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("connect", TRANSIENT),
        ("timeout", TRANSIENT),
        ("disconnected", TRANSIENT),
        ("tls", TRANSIENT),
        ("certificate", CONFIG),
        ("address", CONFIG),
        ("truncated", BAD_OUTPUT),
        ("too_long", BAD_OUTPUT),
        ("endless", BAD_OUTPUT),
        ("wrong_answer", BAD_OUTPUT),
        ("what nobody knows", TRANSIENT),
    ],
)
def test_a_failure_without_an_answer_has_a_class(code: str, meaning: FailureClass):
    assert classify_failure(code) is meaning


def test_every_failure_of_the_transport_has_a_row():
    from worker.adapters.http_failures import FAILURES

    known = {code for row in TABLE for code in row.failures}
    assert {code for _, code, _ in FAILURES} | {"too_long", "wrong_answer", "endless"} == known


def test_every_class_has_a_row():
    assert {row.meaning for row in TABLE} == set(FailureClass)


def test_no_row_is_dead():
    """Each row is the first that fits for some answer, or names a failure."""
    answers = [
        (dialect, ErrorAnswer(status, code, hinted=hinted))
        for dialect in DIALECTS
        for status in (*range(201, 600), 700)
        for code in (
            "",
            "insufficient_quota",
            "quota",
            "api_key",
            "content_filter",
            "model_not_found",
        )
        for hinted in (False, True)
    ]
    answers += [
        (dialect, ErrorAnswer(400, param="dimensions", code=code, should_retry=retry))
        for dialect in DIALECTS
        for code in ("", "model_not_found")
        for retry in (None, True)
    ]
    answers += [("openai", ErrorAnswer(400, message="unauthorized"))]
    answers += [("openai", ErrorAnswer(400, message="unknown parameter: x"))]
    answers += [(dialect, answer) for dialect, answer, _ in OWN_ROWS]
    answers += [("openai", answer) for answer, _ in REASONS]
    answers += [(name, ErrorAnswer(400, message=message)) for name, message in OWN_REASONS]
    first = {next(i for i, row in enumerate(TABLE) if row.fits(*one)) for one in answers}
    assert first | {i for i, row in enumerate(TABLE) if row.failures} == set(range(len(TABLE)))


TEXTS = st.text(max_size=300)


@given(
    st.sampled_from(DIALECTS),
    st.builds(
        ErrorAnswer,
        status=st.integers(-1, 2000),
        code=TEXTS,
        type=TEXTS,
        param=st.none() | TEXTS,
        message=TEXTS,
        hinted=st.booleans(),
        should_retry=st.none() | st.booleans(),
    ),
)
def test_whatever_is_answered_has_a_class(dialect: DialectName, answer: ErrorAnswer):
    assert classify(dialect, answer) in FailureClass


@given(st.sampled_from(DIALECTS), st.integers(100, 999), TEXTS)
def test_only_the_statuses_about_a_request_blame_its_texts(
    dialect: DialectName, status: int, message: str
):
    """An outage is not poison, whatever its prose says."""
    meaning = classify(dialect, ErrorAnswer(status, message=message))
    assert meaning is not CONTENT or status in {400, 413, 422}
