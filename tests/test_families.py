"""docs/families.md says what the code finds, and misses no network."""

from __future__ import annotations

import pytest
from cases import TRAINED, Case
from families import FAMILIES, PAGE, describe, read, write
from models import zoo
from proof import TOLERANCE
from test_proof import QUICK

LARGE = {"light_vgg19", "vgg11_bn", "vit_b_16"}
"""Networks whose files take minutes each to prove: the table may lack some of them."""

ROWS = read(PAGE.read_text(encoding="utf-8"))


def test_every_network_is_in_a_family_and_in_the_table() -> None:
    expected = {(zoo.network(name), zoo.exporter(name)) for name in zoo.NAMES}
    networks = [network for family in FAMILIES.values() for network in family]
    assert len(networks) == len(set(networks))
    assert set(networks) == {network for network, _ in expected} | set(TRAINED)
    listed = {(row.network, row.file) for row in ROWS if row.network not in TRAINED}
    assert listed <= expected
    assert {network for network, _ in expected - listed} <= LARGE
    assert set(TRAINED) - {row.network for row in ROWS} <= LARGE


def test_every_row_was_proved() -> None:
    assert all(0 <= float(row.difference) <= TOLERANCE for row in ROWS)


def test_page_is_written_as_it_is_read() -> None:
    assert write(ROWS) == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", QUICK)
def test_table_has_what_the_analysis_finds(name: str) -> None:
    """Where this fails, ``python tests/families.py --only NAME`` brings the table up to date."""
    case = Case(name)
    key = (zoo.network(name), zoo.exporter(name))
    listed = {row.granularity: row.found for row in ROWS if (row.network, row.file) == key}
    granularities = [g for g in ("channel", "head", "head-dim") if case.has_more(g)]
    assert listed == {g: describe(case, g).found for g in granularities}
