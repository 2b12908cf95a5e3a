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

KEY = jax.random.key(0)
VP = ds.VariancePreserving()
GRID = ds.times.uniform_logsnr(VP, 4)


def field(params, x, t, cond):
    return jnp.tanh(params * x) + cond[:, None]


def sampler_of(weight=0.5):
    return solvers.linear(ds.Network(field, weight, predicts="data"), solvers.ddpm(VP, GRID))


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
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match="is no job of samples"):
        job(tmp_path / "thesis")
    with pytest.raises(OSError, match=r"text\.tex"):
        job(tmp_path / "thesis" / "text.tex" / "a")
    assert {path: path.read_bytes() for path in content} == content
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["text.tex"]


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


def test_a_bad_chunk_is_named_and_the_others_are_safe(tmp_path):
    def cond(numbers):
        return np.where(numbers == 107, np.nan, 0).astype(np.float32)

    with pytest.raises(ds.NonFiniteError, match="first at call 0") as caught:
        job(tmp_path / "a", cond=cond, first=100)
    assert caught.value.samples == [107]
    assert "samples 105 to 110 of a job" in caught.value.__notes__[0]
    assert ds.open_samples(tmp_path / "a").done == [(0, 5)]


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
    ):
        with pytest.raises(kind, match=message):
            job(tmp_path / "a", **options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ds.open_samples(tmp_path / "a")
