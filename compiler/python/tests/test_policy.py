"""The Python module against the command line.

`QAILC` names the command line; `fixtures/test.sh` sets it and puts the module
on the path.
"""

import inspect
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import qailc

ROOT = pathlib.Path(__file__).resolve().parents[3]
HOPPER = ROOT / "fixtures/policies/hopper"
MODEL, DEMOS = HOPPER / "hopper_expert.onnx", HOPPER / "hopper_demos.npz"


def command_line(*args):
    program = os.environ.get("QAILC")
    assert program, "set QAILC to the command line that the module is compared with"
    return subprocess.run([program, *map(str, args)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def observations():
    return np.load(DEMOS)["observations"][:500]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifacts") / "hopper.qail"
    qailc.compile(MODEL, path, bits="w4a4", demos=DEMOS, method="ptq", calibration_samples=256)
    return path


@pytest.fixture
def policy(artifact):
    return qailc.Policy(artifact)


def actions_of(policy, observations):
    return np.stack([policy.run({"obs": row})["action"] for row in observations])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class HeartBeat:
    """Counts in another thread, which only gets its turn when Python's lock is given back."""

    def __enter__(self):
        self.beats, self.stopped = 0, False
        self.old = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)
        self.thread = threading.Thread(target=self.beat)
        self.thread.start()
        return self

    def beat(self):
        while not self.stopped:
            self.beats += 1
            time.sleep(0.001)

    def __exit__(self, *_):
        self.stopped = True
        sys.setswitchinterval(self.old)
        self.thread.join()


def test_the_same_artifact_and_report_as_the_command_line(artifact, tmp_path):
    path = tmp_path / "other.qail"
    options = ["-b", "w4a4", "--demos", DEMOS, "--method", "ptq", "--calibration-samples", "256"]
    command_line("compile", MODEL, *options, "-o", path)
    assert path.read_bytes() == artifact.read_bytes()
    report = qailc.compile(MODEL, artifact, demos=DEMOS, method="ptq", calibration_samples=256)
    assert report["path"] == str(artifact) and report["precision"] == "w4a4+e8+o16"
    assert report["artifact_bytes"] == artifact.stat().st_size
    assert report["layers"] and report["errors"][0]["name"] == "action" and isinstance(report["notes"], list)


def test_the_same_actions_as_the_command_line_bit_for_bit(artifact, policy, observations, tmp_path):
    path = tmp_path / "actions.npz"
    command_line("run", artifact, "--input", DEMOS, "--rows", len(observations), "-o", path)
    assert same_bits(actions_of(policy, observations), np.load(path)["action"])


def test_a_policy_says_what_it_is(policy):
    assert [(p.name, p.dtype, p.shape) for p in policy.inputs] == [("obs", "float32", (11,))]
    assert [(p.name, p.dtype, p.shape) for p in policy.outputs] == [("action", "float32", (3,))]
    for port in policy.inputs + policy.outputs:
        for bounds in (port.lower, port.upper):
            assert bounds is None or len(bounds) == port.shape[-1]
    assert policy.precision == "w4a4+e8+o16" and policy.name == "hopper_expert"
    assert policy.device.startswith("cpu:") and policy.control_rate_hz is None
    assert repr(policy.inputs[0]) == 'PortInfo(name="obs", dtype="float32", shape=(11,))'
    assert "hopper_expert" in repr(policy)
    assert qailc.__version__ in command_line("--version")


def test_a_batch_axis_comes_back(policy, observations):
    plain = policy.run({"obs": observations[0]})["action"]
    batched = policy.run({"obs": observations[:1]})["action"]
    assert plain.shape == (3,) and batched.shape == (1, 3)
    assert same_bits(plain, batched[0])


def test_outputs_are_the_callers_own(policy, observations):
    first = policy.run({"obs": observations[0]})["action"]
    kept = first.copy()
    second = policy.run({"obs": observations[1]})["action"]
    assert same_bits(first, kept) and not np.shares_memory(first, second)
    first[:] = 0


def test_reset_changes_nothing_for_a_policy_without_memory(policy, observations):
    before = policy.run({"obs": observations[0]})["action"]
    assert policy.reset() is None
    assert same_bits(before, policy.run({"obs": observations[0]})["action"])


def test_every_instruction_set_gives_the_same_bits(artifact, policy, observations):
    expected = actions_of(policy, observations)
    names = [device["device"] for device in qailc.devices() if device["device"].startswith("cpu")]
    assert "cpu:generic" in names
    for name in names:
        assert same_bits(actions_of(qailc.Policy(artifact, name), observations), expected), name


def test_vulkan_gives_the_same_bits(artifact, policy, observations):
    names = [device["device"] for device in qailc.devices() if device["device"].startswith("vulkan")]
    required = int(os.environ.get("QAILC_REQUIRE_ADAPTERS", "0"))
    assert len(names) >= required, names
    if not names:
        pytest.skip("there is no Vulkan device here")
    some = observations[:20]
    for name in names:
        assert same_bits(actions_of(qailc.Policy(artifact, name), some), actions_of(policy, some)), name


ACT, PUSH = ROOT / "fixtures/policies/metaworld/act_push_small.onnx", ROOT / "fixtures/policies/metaworld/push_demos.npz"


@pytest.fixture
def chunks(tmp_path):
    """Compiles a policy of chunks of 20 actions."""

    def build(**options):
        path = tmp_path / "act.qail"
        qailc.compile(ACT, path, bits="f32", chunk_length=20, **options)
        return qailc.Policy(path)

    return build


def test_act_gives_out_the_rows_of_chunks(chunks):
    observations = np.load(PUSH)["observations"][:25]
    policy = chunks(chunk_execute=6)
    assert policy.action == "actions" and policy.chunk == {"length": 20, "execute": 6, "ensemble": None}
    whole = np.stack([policy.run({"obs": row})["actions"] for row in observations])
    assert whole.shape == (25, 20, 4)
    for episode in range(2):
        policy.reset()
        for step, row in enumerate(observations):
            action = policy.act({"obs": row})
            # Runs in between leave the queue alone.
            policy.run({"obs": observations[0]})
            assert same_bits(action, whole[step - step % 6, step % 6]), (episode, step)
    batched = policy.act({"obs": observations[:1]})
    assert batched.shape == (1, 4)


def test_act_ensembles_as_act_does(chunks):
    """The temporal aggregation of tonyzhaozh/act, `imitate_episodes.py`, in numpy."""
    observations, m, length = np.load(PUSH)["observations"][:50], 0.1, 20
    policy = chunks(chunk_ensemble=m)
    assert policy.chunk == {"length": 20, "execute": 1, "ensemble": m}
    n = len(observations)
    all_time_actions, populated = np.zeros((n, n + length, 4), np.float32), np.zeros((n, n + length), bool)
    for t, row in enumerate(observations):
        all_time_actions[t, t : t + length] = policy.run({"obs": row})["actions"]
        populated[t, t : t + length] = True
        actions_for_curr_step = all_time_actions[populated[:, t], t]
        exp_weights = np.exp(-m * np.arange(len(actions_for_curr_step)))
        exp_weights = (exp_weights / exp_weights.sum())[:, None].astype(np.float32)
        expected = (actions_for_curr_step * exp_weights).sum(axis=0)
        np.testing.assert_allclose(policy.act({"obs": row}), expected, atol=2e-6, err_msg=f"step {t}")


def test_a_step_that_fails_has_not_happened(chunks):
    observations = np.load(PUSH)["observations"]
    policy, twin = chunks(chunk_execute=4), chunks(chunk_execute=4)
    bad = np.full(39, np.nan, np.float32)
    for step in range(8):
        if step % 4 == 0:
            with pytest.raises(qailc.InvalidInput, match="is NaN"):
                policy.act({"obs": bad})
        assert same_bits(policy.act({"obs": observations[step]}), twin.act({"obs": observations[step]}))


def test_act_of_a_policy_without_chunks_is_run(policy, observations):
    assert policy.action == "action" and policy.chunk is None
    for row in observations[:3]:
        assert same_bits(policy.act({"obs": row}), policy.run({"obs": row})["action"])


@pytest.mark.parametrize(
    "obs, error, words",
    [
        ([0.0] * 11, TypeError, ["`obs`", "float32", "`list`"]),
        (np.zeros(11), TypeError, ["`obs`", "float32", "float64"]),
        (np.zeros(11, ">f4"), TypeError, ["`obs`", "byte order"]),
        (np.zeros(12, np.float32), ValueError, ["`obs`", "(11,)", "(12,)"]),
        (np.zeros((11, 1), np.float32), ValueError, ["`obs`", "(11, 1)"]),
        (np.zeros((2, 11), np.float32), ValueError, ["`obs`", "(2, 11)"]),
        (np.zeros((1, 1, 11), np.float32), ValueError, ["`obs`"]),
        (np.zeros(22, np.float32)[::2], ValueError, ["`obs`", "contiguous"]),
        (np.zeros(45, np.uint8)[1:].view(np.float32), ValueError, ["`obs`", "contiguous"]),
        (np.full(11, np.nan, np.float32), ValueError, ["element 0 of input `obs` is NaN"]),
        (np.full(11, -np.inf, np.float32), ValueError, ["element 0 of input `obs` is -inf"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(policy, observations, obs, error, words):
    with pytest.raises(error) as caught:
        policy.run({"obs": obs})
    assert all(word in str(caught.value) for word in words), caught.value
    assert error is TypeError or isinstance(caught.value, qailc.InvalidInput)
    # The policy stays usable.
    policy.run({"obs": observations[0]})


@pytest.mark.parametrize(
    "names, words", [([], ["`obs` is missing"]), (["observation"], ["`obs` is missing"]), (["obs", "x"], ["`x`"])]
)
def test_names_of_inputs_are_checked(policy, names, words):
    with pytest.raises(qailc.InvalidInput) as caught:
        policy.run({name: np.zeros(11, np.float32) for name in names})
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(TypeError):
        policy.run([np.zeros(11, np.float32)])


def test_failures_have_the_class_of_their_exit_code(artifact, tmp_path):
    def fails(kind, code, call):
        with pytest.raises(kind) as caught:
            call()
        assert isinstance(caught.value, qailc.Error)
        assert caught.value.exit_code == code and isinstance(caught.value.causes, list), caught.value
        return caught.value

    out, broken = tmp_path / "out.qail", tmp_path / "broken.qail"
    broken.write_bytes(artifact.read_bytes()[:-1])
    error = fails(qailc.UsageError, 2, lambda: qailc.compile(MODEL, out, bits="w4a4"))
    assert "--demos" in error.help and isinstance(error, ValueError)
    fails(qailc.UsageError, 2, lambda: qailc.compile(MODEL, out, bits="w3a3"))
    fails(qailc.UsageError, 2, lambda: qailc.compile(MODEL, out, demos=DEMOS, steps=0))
    fails(qailc.UsageError, 2, lambda: qailc.Policy(artifact, device="cuda"))
    fails(qailc.InvalidInput, 4, lambda: qailc.Policy(tmp_path / "missing.qail"))
    fails(qailc.InvalidInput, 4, lambda: qailc.compile(tmp_path / "missing.onnx", out, bits="f32"))
    fails(qailc.NoDevice, 7, lambda: qailc.Policy(artifact, device="vulkan:99"))
    assert "cut off" in str(fails(qailc.ArtifactError, 8, lambda: qailc.Policy(broken)))
    assert not out.exists()
    with pytest.raises(TypeError, match="bitz"):
        qailc.compile(MODEL, out, bitz="w4a4")


def test_an_unsupported_model_lists_its_blockers(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3])
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="strange")
    graph = onnx.helper.make_graph([node], "g", [value("x")], [value("y")])
    path = tmp_path / "strange.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(qailc.UnsupportedModel) as caught:
        qailc.compile(path, bits="f32")
    assert caught.value.exit_code == 3
    assert caught.value.blockers[0]["node"] == "strange" and caught.value.blockers[0]["remedy"]


def test_two_policies_run_in_two_threads(artifact, observations, tmp_path):
    other = tmp_path / "bc.qail"
    qailc.compile(HOPPER / "hopper_bc.onnx", other, bits="w8a8", demos=DEMOS, method="ptq", calibration_samples=64)
    policies = [qailc.Policy(artifact), qailc.Policy(other)]
    alone = [actions_of(policy, observations) for policy in policies]
    together, start = [None, None], threading.Barrier(2)

    def work(i):
        start.wait()
        together[i] = [actions_of(policies[i], observations) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for expected, found in zip(alone, together):
        assert len(found) == 10 and all(same_bits(expected, one) for one in found)


def test_two_threads_share_a_policy(policy, observations):
    expected, found = actions_of(policy, observations), []
    work = lambda: found.append(actions_of(policy, observations))
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 4 and all(same_bits(expected, one) for one in found)


def test_run_gives_pythons_lock_back(policy, observations):
    row, deadline = {"obs": observations[0]}, time.monotonic() + 20
    with HeartBeat() as heart:
        before = heart.beats
        while heart.beats < before + 3 and time.monotonic() < deadline:
            policy.run(row)
        assert heart.beats >= before + 3


def test_compile_gives_pythons_lock_back(tmp_path):
    with HeartBeat() as heart:
        before = heart.beats
        qailc.compile(MODEL, tmp_path / "a.qail", demos=DEMOS, method="ptq")
        assert heart.beats > before + 10


def test_training_tells_how_far_it_is(tmp_path):
    told = []
    report = qailc.compile(
        MODEL, tmp_path / "a.qail", demos=DEMOS, steps=40, batch=32, calibration_samples=64, seed=1, lr=1e-3,
        progress=lambda *args: told.append(args),
    )  # fmt: skip
    assert ("train", 40, 40) in told and all(done <= all_ for _, done, all_ in told)
    assert report["errors"][0]["n_samples"] > 0


def test_an_exception_in_progress_ends_the_work(tmp_path):
    class Enough(Exception):
        pass

    def progress(stage, done, all_):
        if stage == "train":
            raise Enough

    with pytest.raises(Enough):
        qailc.compile(
            MODEL, tmp_path / "a.qail", demos=DEMOS, steps=10_000_000, calibration_samples=64, progress=progress
        )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_the_work(tmp_path):
    # A shell starts its background jobs with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        qailc.compile(MODEL, tmp_path / "a.qail", demos=DEMOS, steps=10_000_000, calibration_samples=64)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_compiled_too(tmp_path):
    checkpoint, out = tmp_path / "a.ckpt", tmp_path / "a.qail"
    options = ["--demos", DEMOS, "--steps", "2", "--calibration-samples", "64"]
    command_line("train", MODEL, *options, "-o", checkpoint)
    assert qailc.compile(checkpoint, out)["precision"] == "w4a4+e8+o16"
    with pytest.raises(qailc.UsageError, match="checkpoint"):
        qailc.compile(checkpoint, out, bits="w8a8")


def test_every_flag_is_a_keyword():
    # Of the terminal alone, or parameters by position.
    others = {"help", "version", "json", "quiet", "verbose", "dump", "out"}
    flags = set(re.findall(r"--([a-z][a-z-]*)", re.sub(r"\n {10,}.*", "", command_line("compile", "--help")))) - others
    names = {"lambda": "lambda_", "output": "outputs", "dim": "dims"}
    keywords = {names.get(flag, flag.replace("-", "_")) for flag in flags}
    parameters = inspect.signature(qailc.compile).parameters
    assert set(parameters) - {"model", "out", "progress"} == keywords
    for name in keywords:
        # Each is known to the function, not to its signature alone: a number is no
        # value of any of them, or the model is missing.
        with pytest.raises((qailc.Error, TypeError)) as caught:
            qailc.compile("missing.onnx", "out.qail", **{name: {"a": 1} if name in ("map", "dims") else "1"})
        assert "unexpected keyword" not in str(caught.value)


def test_the_stub_knows_what_the_module_has():
    text = (pathlib.Path(__file__).parents[1] / "qailc.pyi").read_text()
    declared = set(re.findall(r"^(?:class|def) (\w+)", text, re.M)) - {"Device", "Blocker", "Chunk"}
    present = {name for name in dir(qailc) if not name.startswith("_") and not inspect.ismodule(getattr(qailc, name))}
    assert declared == present
    stub = re.search(r"def compile\((.*?)\n\) ->", text, re.S).group(1)
    assert re.findall(r"^    (\w+):", stub, re.M) == list(inspect.signature(qailc.compile).parameters)
    for kind in (qailc.Policy, qailc.PortInfo):
        block = re.search(rf"^class {kind.__name__}:\n(.*?)(?=^\S)", text, re.S | re.M).group(1)
        methods = {name for name in re.findall(r"def (\w+)", block) if not name.startswith("_")}
        assert methods == {name for name in dir(kind) if not name.startswith("_")}
