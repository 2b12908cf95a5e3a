"""Jobs: the samples of one call, in chunks, after kills, with other chunks; stores that refuse and never break."""

import json
import resource
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_many_devices import finish, free_port, start

import diffsample as ds
from diffsample import discrete, smc, solvers
from diffsample.compiles import count_compiles
from diffsample.sample_store import checksum, merged, missing

KEY = jax.random.key(0)
VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 4)


def field(params, x, t, cond):
    return jnp.tanh(params * x) + cond[:, None]


def sampler_of(weight=0.5):
    return solvers.linear(ds.Network(field, weight, predicts="data"), solvers.ddpm(VP, GRID))


def of_code(power):
    """A sampler whose function has the same name whatever it computes."""

    def edited(params, x, t, cond):
        return jnp.tanh(params * x) ** power + cond[:, None]

    return solvers.linear(ds.Network(edited, 0.5, predicts="data"), solvers.ddpm(VP, GRID))


def parity(numbers):
    return (numbers % 2).astype(np.float32)


def job(out, n=23, chunk=5, sampler=None, cond=parity, **options):
    return ds.sample_many(KEY, sampler_of() if sampler is None else sampler, n, (3,), out=out, chunk=chunk, cond=cond,
                          **options)  # fmt: skip


def interrupted(out, monkeypatch, after, **options):
    """The job, left by an error after so many chunks."""
    from diffsample.sample_store import Samples

    write, seen = Samples.write, []

    def stop(self, a, b, rows):
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(a)
        write(self, a, b, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Samples, "write", stop)
        job(out, **options)


def test_a_job_is_one_call_in_chunks_and_one_program(tmp_path):
    whole = ds.sample(KEY, sampler_of(), (23, 3), cond=parity(np.arange(23)))
    samples = job(tmp_path / "a")
    np.testing.assert_allclose(samples[:], whole, rtol=1e-6, atol=1e-6)
    with count_compiles() as compiles:
        again = job(tmp_path / "b", n=31)
    assert compiles.count == 0
    np.testing.assert_array_equal(again[:23], samples[:])
    given = job(tmp_path / "c", cond=parity(np.arange(23)))
    np.testing.assert_array_equal(given[20], samples[20])
    late = job(tmp_path / "d", n=13, first=10)
    np.testing.assert_array_equal(late[:], samples[10:])
    assert [len(part) for part in samples.batches(10)] == [10, 10, 3]
    seen: list[int] = []
    job(tmp_path / "e", n=4, first=10, cond=lambda numbers: seen.extend(numbers) or parity(numbers))
    assert set(seen) == {10, 11, 12, 13}  # none behind the end, where there is no condition


def test_states_are_given_as_an_array_or_a_function_of_numbers(tmp_path):
    x = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    whole = ds.sample(KEY, sampler_of(), x=jnp.asarray(x), cond=parity(np.arange(23)))
    given = ds.sample_many(KEY, sampler_of(), 23, x=x, out=tmp_path / "a", chunk=5, cond=parity)
    np.testing.assert_allclose(given[:], whole, rtol=1e-6, atol=1e-6)
    late = ds.sample_many(KEY, sampler_of(), 13, x=lambda i: x[i], out=tmp_path / "b", chunk=5, cond=parity, first=10)
    np.testing.assert_array_equal(late[:], given[10:])
    for begin, message in ((x + 1, "start"), (x[:5], r"x has shape \(5, 3\).*each of the 23"),
                           (lambda i: x[:2], "x of 5 numbers has shape")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ds.sample_many(KEY, sampler_of(), 23, x=begin, out=tmp_path / "a", chunk=5, cond=parity)
    for shape, begin in (((3,), x), (None, None)):
        with pytest.raises(ValueError, match="either the shape of one sample or x"):
            ds.sample_many(KEY, sampler_of(), 23, shape, x=begin, out=tmp_path / "a", chunk=5)
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"x\[2, 1\] = nan") as caught:
        ds.sample_many(KEY, sampler_of(), 23, x=x, out=tmp_path / "c", chunk=5, cond=parity)
    assert "samples 5 to 10 of a job" in caught.value.__notes__[0]


@pytest.mark.parametrize("chunk", [5, 4, 8])
def test_a_job_goes_on_where_it_stopped_with_any_chunk(tmp_path, monkeypatch, chunk):
    interrupted(tmp_path / "a", monkeypatch, after=2)
    stopped = ds.open_samples(tmp_path / "a")
    assert stopped.done == [(0, 10)] and not stopped.complete
    with pytest.raises(ValueError, match=r"not all drawn yet, only \[\(0, 10\)\] of 23"):
        stopped[8:12]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "commits").iterdir()}
    samples = job(tmp_path / "a", chunk=chunk)
    assert samples.complete and all(path.stat().st_mtime_ns == time for path, time in before.items())
    np.testing.assert_allclose(samples[:], job(tmp_path / "b")[:], rtol=1e-6, atol=1e-6)
    samples.verify()


def test_kills_lose_nothing(tmp_path):
    found = json.loads(finish(start("killed_jobs.py", tmp_path, 40, 5)))
    assert found["kills"] == 5 and found["equal"] and found["left"] == []


@pytest.mark.slow
def test_a_hundred_kills_of_a_job_of_two_hundred_chunks_lose_nothing(tmp_path):
    found = json.loads(finish(start("killed_jobs.py", tmp_path, 200, 100)))
    assert found["kills"] == 100 and found["equal"] and found["left"] == []


def test_a_store_of_another_job_is_refused_and_left_as_it_is(tmp_path):
    job(tmp_path / "a")
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options, name in (
        ({"sampler": sampler_of(0.6)}, "parameters"),
        ({"n": 24}, "n: 23 there, 24 here"),
        ({"cond": lambda numbers: parity(numbers + 1)}, "condition"),
        ({"first": 3}, "first: 0 there, 3 here"),
        ({"dtype": jnp.bfloat16}, "arrays"),
    ):
        with pytest.raises(ValueError, match=f"another job.*{name}.*nothing was written"):
            job(tmp_path / "a", **options)
    with pytest.raises(ValueError, match=r"key: \[0, 0\] there, \[0, 1\] here"):
        ds.sample_many(jax.random.key(1), sampler_of(), 23, (3,), out=tmp_path / "a", chunk=5, cond=parity)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match="is no job of samples"):
        job(tmp_path / "thesis")
    with pytest.raises(OSError, match=r"text\.tex"):
        job(tmp_path / "thesis" / "text.tex" / "a")
    assert {path: path.read_bytes() for path in content} == content
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["text.tex"]


@pytest.mark.parametrize("name", ["shape", "versions", "device", "start", "kind"])
def test_a_store_of_another_place_or_time_is_refused(tmp_path, name):
    job(tmp_path / "a", n=5)
    file = tmp_path / "a" / "manifest.json"
    manifest = json.loads(file.read_text())
    (manifest if name == "kind" else manifest["job"])[name] = "another"
    file.write_text(json.dumps(manifest))
    with pytest.raises((ValueError, FileExistsError), match="no job of samples" if name == "kind" else name):
        job(tmp_path / "a", n=5)


def test_edited_code_is_refused_until_the_user_says_so(tmp_path, monkeypatch):
    """Two functions of one name; a job, a saved run and what they were begun with."""
    interrupted(tmp_path / "a", monkeypatch, after=2, sampler=of_code(1))
    with pytest.raises(ValueError, match="begun with other code"):
        job(tmp_path / "a", sampler=of_code(2))
    given = {"shape": (4, 3), "cond": parity(np.arange(4))}
    run = ds.start(KEY, of_code(1), **given).advance(2)
    run.save(tmp_path / "run")
    with pytest.warns(UserWarning, match="saved by other code"):
        ds.start(KEY, of_code(2), **given).restore(tmp_path / "run")
    assert ds.start(KEY, of_code(1), **given).restore(tmp_path / "run").row == 2
    file = tmp_path / "a" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["job"]["code"]
    file.write_text(json.dumps(manifest))
    assert job(tmp_path / "a", sampler=of_code(2), chunk=7).complete


def test_a_full_disk_is_an_error_that_says_what_is_safe(tmp_path, monkeypatch):
    interrupted(tmp_path / "a", monkeypatch, after=2)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))  # no file beyond 16 bytes: what a full disk does
    try:
        with pytest.raises(OSError, match="10 of 23 are safe"):
            job(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert ds.open_samples(tmp_path / "a").done == [(0, 10)]
    np.testing.assert_array_equal(job(tmp_path / "a")[:], job(tmp_path / "b")[:])
    with pytest.raises(OSError, match="bytes and the disk of"):
        ds.sample_many(KEY, sampler_of(), 2**31, (2**20,), out=tmp_path / "huge", chunk=1, cond=parity)
    assert not (tmp_path / "huge").exists()


def test_a_changed_byte_is_found(tmp_path):
    samples = job(tmp_path / "a")
    file = next(path for path in (tmp_path / "a" / "samples.zarr" / "x").rglob("0") if path.is_file())
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="are not what was written"):
        ds.open_samples(samples.path).verify()


def test_every_array_is_in_the_checksum():
    rows = {"calls": np.arange(3), "x": np.zeros((3, 2))}
    assert checksum(rows) != checksum(rows | {"calls": np.arange(3) + 1})
    assert checksum(rows) != checksum(rows | {"x": np.ones((3, 2))})


def test_ranges_merge_and_leave_gaps():
    done = merged([(8, 10), (0, 6), (2, 4), (6, 7)])
    assert done == [(0, 7), (8, 10)] and missing(done, 12) == [(7, 8), (10, 12)] and missing([], 3) == [(0, 3)]


def test_what_killed_processes_left_goes_and_strangers_stay(tmp_path, monkeypatch):
    interrupted(tmp_path / "a", monkeypatch, after=2)
    left = [tmp_path / "a" / "commits" / ".x.part", tmp_path / "a" / "samples.zarr" / "x" / "c" / "0.__lock"]
    note = tmp_path / "a" / "commits" / "see-also.json"
    for path in (*left, note):
        path.write_text("")
    assert job(tmp_path / "a").complete and not any(path.exists() for path in left) and note.exists()
    assert json.loads((tmp_path / "a" / "samples.zarr" / "zarr.json").read_text())["node_type"] == "group"


def test_a_bad_chunk_is_named_and_the_others_are_safe(tmp_path):
    def cond(numbers):
        return np.where(numbers == 107, np.nan, 0).astype(np.float32)

    with pytest.raises(ds.NonFiniteError, match="first at call 0") as caught:
        job(tmp_path / "a", cond=cond, first=100)
    assert caught.value.samples == [107]
    assert "samples 105 to 110 of a job" in caught.value.__notes__[0]
    assert ds.open_samples(tmp_path / "a").done == [(0, 5)]


def leaps(params, x, t, cond):
    """Far away at the first call alone."""
    return jnp.where(t[:, None] > 0.99, params, 0.0) * cond[:, None] + 0 * x


def test_a_check_refuses_divergence_also_in_the_middle(tmp_path):
    deterministic = solvers.linear(ds.Network(leaps, 1e3, predicts="data"), solvers.ddim(VP, GRID))
    with pytest.raises(ds.DivergenceError, match="beyond the limit") as caught:
        job(tmp_path / "a", check=ds.Check(limit=1e-3))
    assert "samples 0 to 5" in caught.value.__notes__[0]
    assert job(tmp_path / "b", n=7, sampler=deterministic, check=ds.Check(limit=100.0)).complete
    cond = (np.arange(7) == 6).astype(np.float32)
    with pytest.raises(ds.DivergenceError, match=r"sample 6 .* at call 0") as caught:
        job(tmp_path / "c", n=7, cond=cond, sampler=deterministic, check=ds.Check(limit=100.0, every_row=True))
    assert "samples 5 to 7" in caught.value.__notes__[0] and ds.open_samples(tmp_path / "c").done == [(0, 5)]


def test_what_a_sampler_finds_itself_is_told_with_its_chunk(tmp_path, monkeypatch):
    def verify(self, out):
        if np.abs(out).max() > 0:
            raise FloatingPointError("found by the sampler")

    monkeypatch.setattr(solvers.Linear, "verify", verify, raising=False)
    with pytest.raises(FloatingPointError, match="found by the sampler") as caught:
        job(tmp_path / "a")
    assert "samples 0 to 5" in caught.value.__notes__[0]


def test_particles_and_decoders_store_all_that_they_return(tmp_path):
    tilted = smc.feynman_kac(sampler_of(), lambda before, after: after.x0[:, 0] - before.x0[:, 0], particles=2)
    found = ds.sample_many(KEY, tilted, 14, (3,), out=tmp_path / "p", chunk=4, cond=parity)
    once = ds.sample(KEY, tilted, (14, 3), cond=parity(np.arange(14)))
    for name, array in (("x", once.x), ("log_w", once.log_w), ("log_z", once.log_z)):
        np.testing.assert_allclose(found.read(name), array, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.read("diagnostics.eve", 4, 8), once.diagnostics.eve[2:4])
    with pytest.raises(ValueError, match="cut a group of 2"):
        found.read("log_w", 1, 3)
    with pytest.raises(ValueError, match="n=13 is no whole number of groups of 2"):
        ds.sample_many(KEY, tilted, 13, (3,), out=tmp_path / "q", chunk=4, cond=parity)

    model = discrete.from_logits(lambda p, x, cond: jnp.zeros((*x.shape, 3)), (), vocab=3, mask_id=3)
    decoder = discrete.Decoder(model, discrete.first_hitting(5))
    tokens = ds.sample_many(KEY, decoder, 7, (5,), out=tmp_path / "t", chunk=3)
    np.testing.assert_array_equal(tokens[:], ds.sample(KEY, decoder, (7, 5)).x)
    assert tokens.read("calls").tolist() == [5] * 7 and "7 of 7 drawn, arrays x, calls, fault" in repr(tokens)


def test_memory_is_flat_in_n(tmp_path):
    def peak(n: int) -> int:
        tracemalloc.start()
        job(tmp_path / str(n), n=n, chunk=200, sampler=sampler_of())
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(400)
    small, arrays = peak(800), len(jax.live_arrays())
    large = peak(8000)  # 96 kB of samples, were they kept
    assert large < small + 30_000 and len(jax.live_arrays()) <= arrays


@pytest.mark.slow
@pytest.mark.parametrize("way", ["apart", "together"])
def test_two_processes_share_a_job(tmp_path, way):
    port = free_port()
    both = [start("shared_job.py", tmp_path / "a", way, i, port, devices=4) for i in range(2)]
    for process in both:
        finish(process)
    samples = ds.open_samples(tmp_path / "a")
    samples.verify()
    np.testing.assert_allclose(samples[:], job(tmp_path / "b", n=90, chunk=16)[:], rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_named(tmp_path):
    for options, kind, message in (
        ({"n": 0}, ValueError, "n=0"),
        ({"chunk": 0}, ValueError, "chunk=0"),
        ({"cond": np.zeros(5)}, ValueError, r"shape \(5,\).*each of the 23 samples"),
        ({"first": 2**32}, ValueError, "2\\*\\*32"),
        ({"first": 1.5}, ValueError, "first=1.5"),
        ({"n": True}, ValueError, "n=True"),
    ):
        with pytest.raises(kind, match=message):
            job(tmp_path / "a", **options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ds.open_samples(tmp_path / "a")
    with pytest.raises(TypeError, match=r"shape.*\(3.0,\)"):
        ds.sample_many(KEY, sampler_of(), 23, (3.0,), out=tmp_path / "a", chunk=5)  # type: ignore[arg-type]
    samples = job(tmp_path / "a", n=np.int64(7), chunk=np.int32(5))  # type: ignore[arg-type]
    assert samples[np.int64(-1)].shape == samples[6].shape == (3,) and samples[5:3].shape == (0, 3)
    for act, kind, message in (
        (lambda: samples[[1, 2]], TypeError, "by their numbers"),
        (lambda: samples["x"], TypeError, "by their numbers"),
        (lambda: samples[7], IndexError, "7 of 7"),
        (lambda: samples[::2], ValueError, "slices of step 1"),
        (lambda: samples.read("x", -3), ValueError, "do not lie in 0 to 7"),
        (lambda: samples.read("x", 3, 30), ValueError, "do not lie in 0 to 7"),
        (lambda: samples.read("log_w"), KeyError, "no array of this job"),
        (lambda: list(samples.batches(0)), ValueError, "size=0"),
    ):
        with pytest.raises(kind, match=message):
            act()
