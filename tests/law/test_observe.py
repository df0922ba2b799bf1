from __future__ import annotations

import numpy as np
import pytest

from nachim.law import Observations, concat, read
from nachim.spec.error import UserError


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    obs = Observations(
        tokens=np.array([1e6, 2e6]), loss=np.array([3.25, 3.0]), flops_per_token=np.array([5.5e6, 4.9e6]),
        group=np.array(["a", "b"]), seed=np.array([0, 1]),
    )  # fmt: skip
    obs.write(tmp_path / f"runs.{suffix}")
    back = read(tmp_path / f"runs.{suffix}")
    assert back.columns().keys() == obs.columns().keys()
    for name, column in obs.columns().items():
        assert np.array_equal(back.columns()[name], column)


def test_flops_follow_the_scale_that_is_there():
    tokens, loss = np.array([1e6]), np.array([3.0])
    assert Observations(tokens, loss, params=np.array([10.0])).flops == 6e7
    both = Observations(tokens, loss, params=np.array([10.0]), flops_per_token=np.array([80.0]))
    assert both.flops == 8e7
    assert both.scales == ("flops_per_token", "params")
    assert both.weight == 1


def test_concat_keeps_what_all_tables_have():
    one = Observations(np.ones(2), np.ones(2), params=np.ones(2), lr=np.ones(2))
    two = Observations(np.ones(3), np.ones(3), params=np.ones(3))
    joined = concat([one, two])
    assert len(joined) == 5
    assert joined.lr is None
    assert len(joined.subset(joined.tokens == 1)) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("tokens,loss,params\n", "empty"),
        ("tokns,loss,params\n1,2,3\n", r"no column 'tokens'; did you mean 'tokns'"),
        ("tokens,loss\n1,2\n", "no column 'params' or 'flops_per_token'"),
        ("tokens,loss,params\n1,2,3\n1,two,3\n", r"row 2, column 'loss': 'two' is not a number"),
        ("tokens,loss,params\n1,nan,3\n", r"row 1, column 'loss': nan is not a finite number"),
        ("tokens,loss,params\n1,-2,3\n", r"row 1, column 'loss': -2 is not positive"),
        ("tokens,loss,params\n0,2,3\n", r"row 1, column 'tokens': 0 is not positive"),
        ("tokens,loss,params,weight\n1,2,3,-1\n", r"column 'weight': -1 is negative"),
        ("tokens,loss,params\n1,2\n", "row 1 has 2 cells, the header has 3"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read(tmp_path / "none.csv")
    for name in ("broken.parquet", "broken.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00junk")
        with pytest.raises(UserError, match="not a readable"):
            read(tmp_path / name)


def test_columns_that_do_not_match():
    with pytest.raises(UserError, match="'loss' has 1 rows"):
        Observations(np.ones(2), np.ones(1), params=np.ones(2))
    with pytest.raises(UserError, match="no column 'flops_per_token'; they have params"):
        Observations(np.ones(2), np.ones(2), params=np.ones(2)).x("flops_per_token")
    with pytest.raises(UserError, match="did you mean 'params'"):
        Observations(np.ones(2), np.ones(2), params=np.ones(2)).x("param")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no rows"):
        Observations(np.ones(2), np.ones(2), params=np.ones(2)).subset(np.array([False, False]))
    with pytest.raises(UserError, match="no observations"):
        concat([])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_columns_of_numbers_are_kept_and_text_is_not(tmp_path, suffix):
    obs = Observations(np.ones(2), np.ones(2), params=np.ones(2), extra={"experts": np.array([1.0, np.nan])})
    obs.write(tmp_path / f"runs.{suffix}")
    back = read(tmp_path / f"runs.{suffix}")
    assert back.extra.keys() == {"experts"}
    assert np.array_equal(back.extra["experts"], [1, np.nan], equal_nan=True)
    (tmp_path / "text.csv").write_text("tokens,loss,params,name,experts\n1,2,3,small,4\n1,2,3,large,\n")
    assert read(tmp_path / "text.csv").extra.keys() == {"experts"}


def test_a_column_that_a_law_reads_must_be_there_and_positive():
    obs = Observations(np.ones(2), np.ones(2), params=np.ones(2), extra={"experts": np.array([1.0, np.nan])})
    assert obs.column("x", "params") is obs.params
    assert obs.column("tokens", "params") is obs.tokens
    with pytest.raises(UserError, match="row 2, column 'experts': nan is not a positive number"):
        obs.column("experts", "params")
    with pytest.raises(UserError, match="needs a column 'expert'; did you mean 'experts'"):
        obs.column("expert", "params")
    assert concat([obs, obs]).extra["experts"].shape == (4,)


def test_what_cannot_be_right_says_what_to_do():
    with pytest.raises(UserError, match="-1 is not positive; correct it or leave the row out"):
        Observations(np.ones(2), np.array([1.0, -1.0]), params=np.ones(2))
