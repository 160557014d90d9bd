"""Which of a connector's words name the cause, and whether a retry may help."""

import pytest

from atlas_dagster.protocol.causes import (
    failure_type,
    find_cause,
    find_exceptions,
    is_code_failure,
    is_generic,
)

GENERIC = "Something went wrong in the connector. See the logs for more details."
PREAMBLE = (
    "Error starting the sync. This could be due to an invalid configuration or catalog. Please "
    "contact Support for assistance. Error: "
)
INVALID = """Traceback (most recent call last):
  File "jsonschema/validators.py", line 1332, in validate
    raise error
jsonschema.exceptions.ValidationError: {'type': 'AsyncRetriever'} is not valid

Failed validating 'anyOf' in schema['properties']['streams']['items'][0]:
    {'anyOf': []}

On instance['streams'][0]['retriever']:
    {'type': 'AsyncRetriever'}
"""
FILES_CAUSE = "CheckAvailabilityError: Error listing files: NoCredentialsError: no credentials"
FILES = """Traceback (most recent call last):
  File "botocore/auth.py", line 433, in add_auth
    raise NoCredentialsError()
botocore.exceptions.NoCredentialsError: no credentials

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "availability.py", line 106, in _check_list_files
    raise CheckAvailabilityError(
airbyte_cdk.CheckAvailabilityError: Error listing files. Contact Support if you need assistance.
"""
PYTHON = """Traceback (most recent call last):
  File "/airbyte/integration_code/main.py", line 8, in <module>
    run()
  File "/airbyte/source_faker/source.py", line 31, in streams
    count: int = config["count"]
KeyError: 'count'
"""
CHAINED = """Traceback (most recent call last):
  File "urllib3/connection.py", line 199, in _new_conn
    sock = connection.create_connection(
socket.gaierror: [Errno -2] Name or service not known

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "requests/adapters.py", line 700, in send
    raise ConnectionError(e, request=request)
requests.exceptions.ConnectionError: HTTPSConnectionPool(host='api.example.com', port=443)

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "airbyte_cdk/entrypoint.py", line 240, in check
    raise traced_exc
airbyte_cdk.utils.traced_exception.AirbyteTracedException: None
"""
JAVA = """io.airbyte.cdk.ConfigErrorException: Something went wrong in the connector.
\tat io.airbyte.cdk.Runner.run(Runner.kt:12)
Caused by: java.net.UnknownHostException: db.example.com
\tat java.net.Socket.connect(Socket.java:1)
\t... 12 more
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        GENERIC,
        "Something went wrong",
        "An unexpected error occurred.",
        "Unknown error occurred. Please check the logs.",
        "Internal Server Error",
        "An exception occurred when making the request. "
        "Exception: requests.exceptions.RequestException",
        "Concurrent read failure",
        "Exception",
        "None",
    ],
)
def test_texts_that_say_nothing(text: str) -> None:
    assert is_generic(text)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "Connection refused",
        "HTTP Status Code: 500. Error: Internal server error.",
        "KeyError: 'count'",
        "The logs bucket does not exist",
        "Unable to connect to stream logs",
        "Config validation error: 'count' is a required property",
    ],
)
def test_texts_that_name_a_cause(text: str) -> None:
    assert not is_generic(text)
    assert find_cause(text, ("internal", PYTHON)) == text


@pytest.mark.parametrize(
    ("message", "details", "expected"),
    [
        (GENERIC, ("'count'", PYTHON), "KeyError: 'count'"),
        (GENERIC, ("KeyError: 'count'", PYTHON), "KeyError: 'count'"),
        (GENERIC, (None, PYTHON), "KeyError: 'count'"),
        (GENERIC, ("Name or service not known",), "Name or service not known"),
        (GENERIC, (GENERIC, None, "Token expired"), "Token expired"),
        (GENERIC, ("java.net.UnknownHostException: db",), "UnknownHostException: db"),
        (
            GENERIC,
            (None, CHAINED),
            "ConnectionError: HTTPSConnectionPool(host='api.example.com', port=443)",
        ),
        (GENERIC, (JAVA,), "UnknownHostException: db.example.com"),
        (GENERIC, (), ""),
        (None, (), ""),
        (PYTHON, (), "KeyError: 'count'"),
        (f"Unable to connect to stream users - {PYTHON}", (), None),
        (repr(f"Unable to connect to stream users - {PYTHON}"), (), None),
        ("'Encountered an error. Please see the logs.'", ("a timeout",), None),
        (
            "Exhausted available request attempts. Please see logs for more details. Exception: x",
            ("Exhausted available request attempts. Exception: x",),
            "Exhausted available request attempts. Exception: x",
        ),
        (
            "1 validation error\nhost\n  field required",
            (),
            "1 validation error\nhost\n  field required",
        ),
        (f"{PREAMBLE}No module named 'x'", (), "No module named 'x'"),
        (
            "An unexpected error occurred in stream users: KeyError",
            ("An internal text", PYTHON),
            "An unexpected error occurred in stream users: KeyError: 'count'",
        ),
        (
            FILES,
            (),
            "CheckAvailabilityError: Error listing files: NoCredentialsError: no credentials",
        ),
        (
            repr([FILES]),
            (),
            "CheckAvailabilityError: Error listing files: NoCredentialsError: no credentials",
        ),
        ("Bad file. Contact Support if you need assistance.", (), "Bad file."),
        ("Reading users failed: KeyError", (None, "x"), "Reading users failed: KeyError"),
        (
            f"{PREAMBLE}Validation against json schema defined in "
            "declarative_component_schema.yaml schema failed",
            (None, INVALID),
            "its manifest is not valid for the CDK that runs it, at ['streams'][0]['retriever']",
        ),
    ],
)
def test_the_cause(
    message: str | None, details: tuple[str | None, ...], expected: str | None
) -> None:
    if expected is None:
        expected = "Unable to connect to stream users: KeyError: 'count'"
        if details:
            expected = "Encountered an error: a timeout"
    assert find_cause(message, details) == expected


def test_a_long_text_is_cut() -> None:
    found = find_cause("\n".join(f"line {n}" for n in range(120)))
    assert found.splitlines()[-1] == "line 7 … (all in the log)"
    assert len(find_cause("x" * 5_000)) < 1_600


def test_addresses_of_objects_are_left_out() -> None:
    text = "NewConnectionError('<urllib3.connection.HTTPSConnection object at 0x7f1a>: refused')"
    assert find_cause(text) == "NewConnectionError('refused')"


def test_exceptions_of_a_chain() -> None:
    assert find_exceptions(CHAINED) == [
        "gaierror: [Errno -2] Name or service not known",
        "ConnectionError: HTTPSConnectionPool(host='api.example.com', port=443)",
        "None",
    ]
    assert find_exceptions("no stack trace") == []


@pytest.mark.parametrize(
    ("declared", "message", "causes", "expected"),
    [
        ("config_error", GENERIC, ["Name or service not known"], "transient_error"),
        ("system_error", GENERIC, ["KeyError: 'count'"], "system_error"),
        ("system_error", "Read timed out.", ["Read timed out."], "transient_error"),
        ("config_error", "Host x: Connection refused", ["Connection refused"], "config_error"),
        ("config_error", GENERIC, ["401 Client Error: Unauthorized"], "config_error"),
        (None, None, ["Max retries exceeded with url: /v1"], "transient_error"),
        (None, None, ["Max retries exceeded: invalid token"], "system_error"),
        ("nonsense", "no", ["no"], "system_error"),
        (None, None, ["ModuleNotFoundError: No module named 'x'"], "system_error"),
        (None, None, ["FileNotFoundError: Cannot find file x.json"], "system_error"),
        (None, None, ["Error: getaddr ENOTFOUND db"], "transient_error"),
        ("transient_error", GENERIC, ["KeyError"], "transient_error"),
        ("system_error", GENERIC, ["500 Server Error: Internal Server Error"], "transient_error"),
        (
            "system_error",
            "HTTP Status Code: 502. Error: Bad gateway.",
            ["HTTP Status Code: 502"],
            "transient_error",
        ),
        ("system_error", "HTTP Status Code: 400.", ["HTTP Status Code: 400"], "system_error"),
        (None, None, ["SSLError: certificate verify failed"], "transient_error"),
        (None, None, ["FATAL: password authentication failed for user x"], "system_error"),
        (
            None,
            None,
            ["ConnectionResetError: [Errno 104] Connection reset by peer"],
            "transient_error",
        ),
        (None, None, ["Read 5000 rows with status 5001"], "system_error"),
    ],
)
def test_whose_fault_it_is(
    declared: str | None, message: str | None, causes: list[str], expected: str
) -> None:
    assert failure_type(declared, message, causes) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Error: 'SubstreamPartitionRouter' object has no attribute 'config'",
        "Greet.transform() got an unexpected keyword argument 'stream_slice'",
        "ModuleNotFoundError: No module named 'airbyte_cdk.sources.declarative.types'",
        "cannot import name 'Record' from 'airbyte_cdk'",
        "__init__() missing 2 required positional arguments: 'a' and 'b'",
    ],
)
def test_code_that_does_not_fit_its_library(text: str) -> None:
    assert is_code_failure(text)


@pytest.mark.parametrize("text", ["HTTP 401: the key is wrong", "KeyError: 'count'", ""])
def test_failures_of_other_kinds_than_code(text: str) -> None:
    assert not is_code_failure(text)
