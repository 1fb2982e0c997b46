"""Bad input: the right answer, or one sentence that says what came and what was wanted."""
import re
import warnings

import bad_input_files
import bad_input_networks
import bad_input_tables
import numpy as np
import pytest

ROWS = bad_input_tables.ROWS + bad_input_networks.ROWS + bad_input_files.ROWS
NAMES = [name for name, _, _ in ROWS]


def test_there_are_enough_rows_and_each_has_a_name_of_its_own():
    assert len(ROWS) >= 150
    assert len(set(NAMES)) == len(NAMES)


def answer(thunk):
    "What it gives; a warning is an error"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return thunk()


@pytest.mark.parametrize("name, thunk, expected", ROWS, ids=NAMES)
def test_right_answer_or_one_sentence(name, thunk, expected):
    if callable(expected):
        np.testing.assert_allclose(answer(thunk), expected(), rtol=1e-5, atol=1e-6)
        return
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        answer(thunk)
    words = str(caught.value)
    assert re.search(expected, words), words
    assert "\n" not in words and 20 < len(words) < 400, words
