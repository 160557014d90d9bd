"""Docker's frames, cut anywhere."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from atlas_dagster.runners.docker.attach_stream import FrameDecoder

CODES = {"stdout": 1, "stderr": 2}
FRAMES = st.lists(st.tuples(st.sampled_from(sorted(CODES)), st.binary(max_size=40)), max_size=12)


def encode(frames: list[tuple[str, bytes]]) -> bytes:
    return b"".join(
        bytes([CODES[channel], 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
        for channel, payload in frames
    )


@given(FRAMES, st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same_bytes(frames: list[tuple[str, bytes]], cuts: list[int]) -> None:
    wire = encode(frames)
    places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    decoder = FrameDecoder()
    got = {"stdout": b"", "stderr": b""}
    for start, end in itertools.pairwise(places):
        for channel, piece in decoder.feed(memoryview(wire)[start:end]):
            got[channel] += piece
    for channel, text in got.items():
        assert text == b"".join(payload for name, payload in frames if name == channel)
    assert decoder.is_between_frames


@given(FRAMES.filter(lambda frames: bool(frames and frames[-1][1])), st.integers(1, 8))
def test_a_cut_frame_is_noticed(frames: list[tuple[str, bytes]], missing: int) -> None:
    decoder = FrameDecoder()
    for _ in decoder.feed(memoryview(encode(frames))[:-missing]):
        pass
    assert not decoder.is_between_frames
