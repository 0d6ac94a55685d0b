"""The text of metrics."""

from edge.telemetry.metrics import histogram, sample


def test_a_histogram_adds_up_its_buckets():
    assert histogram("a", {"b": "c"}, (0.5, 1.0), [1, 2, 3], 4.5) == [
        'a_bucket{b="c",le="0.5"} 1',
        'a_bucket{b="c",le="1"} 3',
        'a_bucket{b="c",le="+Inf"} 6',
        'a_sum{b="c"} 4.5',
        'a_count{b="c"} 6',
    ]


def test_a_sample_without_labels_has_no_braces_and_large_counts_stay_exact():
    assert sample("a", {}, 12345678901) == "a 12345678901"


def test_a_flag_is_a_number():
    assert sample("a", {"b": "c"}, True) == 'a{b="c"} 1'
