"""The garbage collector rests while modules are imported and while ``check`` runs, and works again afterwards."""

import gc

import pytest
import torchqat
from command import call
from torchqat.collector import no_collection


def test_it_rests_inside_and_works_again_whatever_happens():
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), no_collection():
        raise ValueError
    assert gc.isenabled()


def test_it_rests_while_check_runs(capsys, monkeypatch):
    seen, load = [], torchqat.load_recipe
    monkeypatch.setattr(torchqat, "load_recipe", lambda *args: (seen.append(gc.isenabled()), load(*args))[1])
    assert call(capsys, "check", "int4")[0] == 0
    assert seen == [False] and gc.isenabled()
