"""Two functions in one record: what each keeps of the room."""


def pair_shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that each of two texts keeps: half of the room, and what the other leaves of its half.

    The first has the odd token.
    """
    kept = min(first, max(room - room // 2, room - second))
    return kept, min(second, room - kept)
