"""Operations on label maps, and chains of models."""

import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import random_volume
from tiny_models import IDS, save_model, tiny_plan

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.inference import labelmaps, postprocess
from labelloop.inference.budget import ALONE, SMALLEST_SLAB, Choice, Held
from labelloop.inference.engine import Predictor, softmax_
from labelloop.inference.export import to_prediction
from labelloop.inference.labelmaps import compose, merge_union, merge_votes
from labelloop.inference.postprocess import Chain, State, load_chain, recount, segment
from labelloop.labels.clean import clean
from strategies import seeds


def line(*values):
    return np.array(values, np.uint8)[None, None]


def random_maps(seed, count):
    return list(np.random.default_rng(seed).integers(0, 5, (count, 3, 4, 5), dtype=np.uint8))


@given(data=st.data(), seed=seeds, count=st.integers(1, 4), block=st.sampled_from([1, 40, 1 << 22]))
def test_merging_is_what_voxels_say_one_by_one(data, seed, count, block):
    maps = random_maps(seed, count)
    known = [sorted(data.draw(st.sets(st.integers(1, 4)))) for _ in maps]
    maps = [np.where(np.isin(labels, ids), labels, 0).astype(np.uint8) for labels, ids in zip(maps, known, strict=True)]
    order = list(dict.fromkeys(value for ids in known for value in ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelmaps, "BLOCK", block)
        voted, painted = merge_votes(maps, known), compose(list(zip(maps, known, strict=True)))
    union = merge_union(maps[0], maps[1:], 3)
    for place in np.ndindex(voted.shape):
        said = [int(labels[place]) for labels in maps]
        shares = {value: said.count(value) / sum(value in ids for ids in known) for value in order}
        best = max(order, key=shares.get, default=0)  # of equal shares the class of the earlier map
        assert voted[place] == (best if best and shares[best] >= 0.5 else 0)
        assert painted[place] == next((value for value in reversed(said) if value), 0)
        assert union[place] == (3 if 3 in said[1:] else said[0])


GRID = Geometry((256, 256, 256), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "work",
    [
        lambda a, b: merge_votes([a, b], [[1], [1]]),
        lambda a, b: compose([(a, [1]), (b, [1])]),
        lambda a, b: recount(a, {"liver": 1}, Volume(b, GRID), []).labels,
    ],
    ids=["votes", "compose", "count"],
)
def test_merging_and_counting_take_little_more_memory_than_label_maps(work):
    maps = [np.full(GRID.shape, value, np.uint8) for value in (1, 1)]
    tracemalloc.start()
    try:
        assert work(*maps).all()
        assert tracemalloc.get_traced_memory()[1] < 5 * maps[0].nbytes
    finally:
        tracemalloc.stop()


def test_union():
    merged = merge_union(line(1, 0, 2), [line(0, 5, 2), line(0, 0, 5)], 5)
    np.testing.assert_array_equal(merged, line(1, 5, 5))


def test_votes_count_only_those_who_know_the_class():
    a, b, c = line(1, 1, 1, 0), line(1, 2, 0, 0), line(0, 0, 3, 3)
    merged = merge_votes([a, b, c], [[1, 2], [1, 2], [3]])
    np.testing.assert_array_equal(merged, line(1, 1, 3, 3))


def test_later_parts_are_painted_over_earlier_ones():
    organs, tumor = line(1, 1, 2, 0), line(0, 14, 14, 1)
    np.testing.assert_array_equal(compose([(organs, [1, 2]), (tumor, [14])]), line(1, 14, 14, 0))
    np.testing.assert_array_equal(compose([(tumor, [14]), (organs, [1, 2])]), line(1, 1, 2, 0))


def test_cleaning_steps_of_label_sets_serve_final_label_maps(models, rng):
    """Also on a grid that is stored upside down: levels are those of the body, and volumes are counted anew."""
    volume = random_volume(rng)
    volume = Volume(volume.array[::-1], replace(volume.geometry, direction=(1, 0, 0, 0, 1, 0, 0, 0, -1)))
    alone = Chain([{"segment": "organs"}], models).predict(volume, "CT")
    steps = [{"keep_slices": ["spleen"], "of": ["liver"], "above_mm": 0}, {"keep_largest": ["liver"]}]
    chain = Chain([{"segment": "organs"}, {"clean": steps}], models, load_classes("flare"))
    result = chain.predict(volume, "CT")
    turned = canonical(Volume(alone.labels, volume.geometry))
    expected, rows = clean(turned.array, turned.geometry, steps, load_classes("flare"))
    np.testing.assert_array_equal(canonical(Volume(result.labels, volume.geometry)).array, expected)
    assert sum(row["voxels_changed"] for row in rows) == (result.labels != alone.labels).sum() > 0
    by_class = {row["class"]: row["volume_ml"] for row in result.rows}
    assert by_class["liver"] == pytest.approx((result.labels == 1).sum() * volume.geometry.voxel_ml)
    without_scheme = Chain([{"segment": "organs"}, {"clean": steps}], models).predict(volume, "CT")
    np.testing.assert_array_equal(without_scheme.labels, result.labels)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("models")
    organs = save_model(tmp_path / "organs", classes=("liver", "spleen"), seed=5)
    other = save_model(tmp_path / "coarse", tiny_plan(spacing_mm=(4.0, 3.0, 3.0)), classes=("liver", "tumor"), seed=6)
    folders = {"a": save_model(tmp_path / "a", seed=1), "b": save_model(tmp_path / "b", seed=2),
               "organs": organs, "coarse": other}  # fmt: skip
    return {name: Predictor(folder, "cpu") for name, folder in folders.items()}


def test_models_alike_are_averaged(models, rng):
    volume = random_volume(rng)
    a, b = models["a"], models["b"]
    prepared = a.prepare(volume, "CT")
    mean = (softmax_(a.logits(prepared)[0]) + softmax_(b.logits(prepared)[0])) / 2
    expected = to_prediction(mean, prepared.frame, a.classes, a.class_ids, probabilities=True)
    state = State(volume, "CT")
    result = segment([a, b], state)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.rows == expected.rows
    assert len(state.prepared) == 1  # two models, one preparation


@pytest.mark.parametrize("names", [["a", "b"], ["organs", "coarse"]], ids=["alike", "others"])
def test_several_models_keep_the_budget_of_slabs_and_hold_two_sets_of_logits_at_most(models, rng, monkeypatch, names):
    volume, slabs, alive, most = random_volume(rng), [], [], []
    least, engine = Choice(1, False, SMALLEST_SLAB), Predictor._logits

    def logits(*arguments):
        made = engine(*arguments)
        alive.append(weakref.ref(made))
        most.append(sum(one() is not None for one in alive))
        return made

    def exported(*arguments):
        slabs.append(arguments[-1])
        return to_prediction(*arguments)

    def counted(*arguments):
        assert not any(one() is not None for one in alive)
        return recount(*arguments)

    monkeypatch.setattr(Predictor, "choices", lambda *_, **__: [least])
    monkeypatch.setattr(Predictor, "_logits", logits)
    monkeypatch.setattr(postprocess, "to_prediction", exported)
    monkeypatch.setattr(postprocess, "recount", counted)
    segment([models[name] for name in (*names, names[0])], State(volume, "CT"))
    assert set(slabs) == {SMALLEST_SLAB} and max(most) == (2 if names == ["a", "b"] else 1)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("steps", [{"segment": "organs"}, {"segment": "coarse"}]),
        ("union", [{"segment": "organs"}, {"segment": ["a", "b"], "merge": {"tumor": "union"}}]),
        ("locate", [{"locate": "organs", "margin_mm": 1}, {"segment": "coarse"}]),
    ],
)
def test_what_a_chain_holds_beside_a_model_counts_in_the_budget(models, rng, monkeypatch, kind, steps):
    volume, told, original = random_volume(rng), [], Predictor.choices

    def choices(self, frame, stored_bytes=2, held=ALONE):
        told.append((self.model.name, held))
        return original(self, frame, stored_bytes, held)

    monkeypatch.setattr(Predictor, "choices", choices)
    Chain(steps, models).predict(volume, "CT")
    label_map, prepared = volume.array.size, models["organs"].prepare(volume, "CT").array.nbytes
    assert told[0][1] == ALONE
    assert (
        told[-1]
        == {
            "steps": ("coarse", Held(0, label_map + prepared)),
            "union": ("b", Held(2, 2 * label_map)),  # that of organs, and of a; all see the same prepared image
            "locate": ("coarse", Held(0, label_map + volume.array.nbytes)),  # the whole, of which it sees a part
        }[kind]
    )


def test_union_of_a_class_over_models(models, rng):
    volume = random_volume(rng)
    chain = Chain([{"segment": ["a", "b"], "merge": {"tumor": "union"}}], models)
    result = chain.predict(volume, "CT")
    singles = [models[n].predict(volume, "CT").labels == IDS["tumor"] for n in "ab"]
    assert ((result.labels == IDS["tumor"]) >= (singles[0] | singles[1])).all()


def test_models_that_differ_vote(models, rng):
    volume = random_volume(rng)
    result = segment([models["organs"], models["coarse"]], State(volume, "CT"))
    maps = [models[n].predict(volume, "CT").labels for n in ("organs", "coarse")]
    np.testing.assert_array_equal(result.labels, merge_votes(maps, [[1, 3], [1, 14]]))
    assert [r["class"] for r in result.rows] == ["liver", "spleen", "tumor"]


def test_chain(models, rng):
    volume = random_volume(rng)
    steps = [
        {"segment": ["organs"], "merge": {}, "step": 0.5, "mirror": False},
        {"segment": ["a", "b"], "merge": {"tumor": "union"}, "step": 0.8, "as": "lesions"},
        {"compose": {"spleen": "organs", "liver": "organs", "tumor": "lesions"}},
        {"clean": {"keep_largest": ["liver"]}},
    ]
    chain = Chain(steps, models)
    result = chain.predict(volume, "CT")
    assert {r["class"] for r in result.rows} == {"liver", "spleen", "tumor"}
    for row in result.rows:
        voxels = (result.labels == IDS[row["class"]]).sum()
        assert row["volume_ml"] == pytest.approx(voxels * volume.geometry.voxel_ml)
        assert (row["confidence"] is None) == (voxels == 0) and (row["confidence"] is None or row["confidence"] <= 1)
    import cc3d

    assert cc3d.connected_components(result.labels == IDS["liver"]).max() <= 1
    assert chain.fingerprint == Chain(steps, models).fingerprint != Chain(steps[:1], models).fingerprint
    turned = [steps[0], steps[1], {"compose": dict(reversed(steps[2]["compose"].items()))}, steps[3]]
    assert Chain(turned, models).fingerprint != chain.fingerprint


def test_chain_from_folders_with_class_sets(tmp_path, rng):
    scheme = load_classes("flare")
    ids = {n: scheme.ids[n] for n in ("liver", "spleen", "tumor")}
    save_model(tmp_path / "student", ids=ids)
    steps = [{"segment": ["student"], "merge": {}, "mirror": True}, {"compose": {"organs": "student"}}]
    chain = load_chain(steps, tmp_path, scheme, "cpu")
    result = chain.predict(random_volume(rng), "CT")
    assert [r["class"] for r in result.rows] == ["liver", "spleen"]
    assert set(np.unique(result.labels)) <= {0, ids["liver"], ids["spleen"]}


@pytest.mark.parametrize(
    ("ids", "told"), [({"spleen": 1, "liver": 3}, "spleen is 1, liver is 3"), ({"mesh": 3, "liver": 1}, "mesh is 3")]
)
def test_cleaning_goes_by_one_set_of_ids(tmp_path, ids, told):
    """A step that cleans the liver by the scheme's id would clean the models' spleen."""
    models = {"a": Predictor(save_model(tmp_path / "a", classes=tuple(ids), ids=ids), "cpu")}
    steps = [{"segment": "a"}, {"clean": {"keep_largest": ["liver"]}}]
    assert Chain(steps, models).scheme.ids == ids
    Chain(steps[:1], models, load_classes("flare"))
    with pytest.raises(UserError, match=rf"step 2 \(clean\).*mean something else in flare: {told}\."):
        Chain(steps, models, load_classes("flare"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "at least one segment"),
        ([{"segmnt": "a"}], "expected a step with one of the keys locate, segment, compose or clean"),
        ([{"segment": "a", "clean": {"keep_largest": ["liver"]}}], "clean: Extra inputs"),
        ([{"clean": {"keep_largest": ["liver"]}}], "nothing has been segmented"),
        ([{"segment": "x"}], "no model named x"),
        ([{"segment": "a"}, {"clean": {"keep_largest": ["lung"]}}], "no class or set named lung"),
        ([{"segment": "a"}, {"compose": {"liver": "b"}}], "compose from"),
        ([{"segment": "organs"}, {"compose": {"tumor": "organs"}}], "knows nothing"),
        ([{"segment": "a", "merge": {"tumor": "mean"}}], r"step 1: merge.tumor: .*'union'"),
        ([{"segment": "a", "threshold": 3}], "threshold: Extra inputs"),
        ([{"segment": "a", "margin_mm": 3}], "margin_mm: Extra inputs"),
        ([{"segment": "a"}, {"clean": {"remove_islands": ["liver"]}}], r"clean\.0\.below_ml: Field required"),
        ([{"locate": "a"}], "at least one segment"),
        ([{"locate": "x"}, {"segment": "a"}], "no model named x"),
        ([{"locate": "organs", "classes": ["lung"]}, {"segment": "a"}], "no class or set named lung"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(models, steps, message):
    with pytest.raises(UserError, match=message):
        Chain(steps, models)
