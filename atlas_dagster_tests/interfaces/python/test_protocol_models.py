"""What a connector says, as the protocol's models."""

import pytest

from atlas_dagster.interfaces.python.protocol_models import messages
from atlas_dagster.protocol.decoder import MessageDecoder

DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("value", ["1e400", "1" * 5000, DEEP], ids=["1e400", "digits", "deep"])
def test_a_value_that_nothing_can_read_is_text(value: str) -> None:
    record = f'{{"stream":"s","emitted_at":1,"data":{{"id":7,"v":{value}}}}}'
    line = f'{{"type":"RECORD","record":{record}}}\n'
    ((message,),) = (messages(found) for found in MessageDecoder().feed(line.encode()))
    assert message.record is not None
    assert message.record.data == {"id": 7, "v": value}
