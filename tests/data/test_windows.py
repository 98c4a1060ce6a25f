import numpy as np

from lathe.data.windows import count_windows, cut_between_documents, window_bounds


def test_documents_that_fit_stay_whole_and_longer_ones_are_cut_from_their_end():
    spans = cut_between_documents([0, 3, 7, 18], 8)  # as drawn there
    assert spans.begins.tolist() == [0, 7, 10]
    assert spans.ends.tolist() == [7, 10, 18]
    assert spans.n_longer == 1


def test_a_window_that_would_read_beyond_the_end_begins_earlier():
    windows = window_bounds(np.arange(3), 10, 4, None)
    assert windows.starts.tolist() == [0, 4, 5]
    assert windows.begins.tolist() == [0, 0, 3]  # the first three are the window's before
    assert windows.ends.tolist() == [4, 4, 4]


def test_with_a_stride_each_window_has_the_targets_that_no_earlier_one_has():
    for n_tokens in range(2, 40):
        for stride in range(1, 6):
            n_windows = count_windows(n_tokens, 5, None, stride)
            windows = window_bounds(np.arange(n_windows), n_tokens, 5, None, stride)
            targets = []
            for i in range(n_windows):
                targets += range(
                    windows.starts[i] + windows.begins[i], windows.starts[i] + windows.ends[i]
                )
            assert targets == list(range(n_tokens - 1))
