"""Messages are compatible across versions: if a new field is missing, the receiver uses its default value."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import msgspec
from llava_wire import messages
from llava_wire.messages.event import Event, TokenLogprob, TokenScore
from llava_wire.messages.heartbeat import Heartbeat, KernelInfo
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import SamplingParams

from tests.wire.harness import heartbeat, make_job


def test_a_job_with_fewer_sampling_fields_gets_neutral_defaults() -> None:
    old = msgspec.msgpack.encode({"seed": 3, "temperature": 0.5})
    assert msgspec.msgpack.decode(old, type=SamplingParams) == SamplingParams(seed=3, temperature=0.5)


def test_neutral_sampling_fields_are_not_sent() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(SamplingParams(seed=3))) == {"seed": 3}


def test_an_event_without_logprobs_is_decoded() -> None:
    old = msgspec.msgpack.encode([4, [1, 2], "ab", None])
    assert msgspec.msgpack.decode(old, type=Event) == Event(4, (1, 2), "ab")


def test_a_token_score_without_a_name_is_decoded_and_one_with_a_newer_field_too() -> None:
    for fields in ([2, b"a", -0.5], [2, b"a", -0.5, "", "new"]):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=TokenScore) == TokenScore(
            2, b"a", -0.5
        )


def test_sampling_params_and_logprobs_survive_encoding() -> None:
    sampling = SamplingParams(
        seed=-1,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((5, -100.0), (0, 0.5)),
        min_tokens=3,
        stop_token_ids=(2,),
        num_logprobs=0,
    )
    job = msgspec.structs.replace(make_job(), sampling=sampling)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job

    logprob = TokenLogprob(TokenScore(1, b"\xc3", -0.5), (TokenScore(2, b"", -9999.0, "</s>"),))
    event = Event(0, (1,), "", None, (logprob,), prompt=(logprob, logprob))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event


def test_messages_do_not_import_redis() -> None:
    names = [info.name for info in pkgutil.iter_modules(messages.__path__, "llava_wire.messages.")]
    code = f"import sys, {', '.join(names)}; sys.exit('redis' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_heartbeat_without_statistics_and_kernels_is_decoded() -> None:
    kernels = KernelInfo(source="shipped")
    new = msgspec.structs.replace(heartbeat("w1"), stats={"num_steps_total": 3}, kernels=kernels)
    old = {
        name: value for name, value in msgspec.to_builtins(new).items() if name not in ("stats", "kernels")
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Heartbeat) == heartbeat("w1")


def test_a_heartbeat_with_unknown_fields_and_statistics_is_decoded() -> None:
    newer = {**msgspec.to_builtins(heartbeat("w1")), "new_field": 1, "stats": {"num_new_total": 0.5}}
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(newer), type=Heartbeat)
    assert read == msgspec.structs.replace(heartbeat("w1"), stats={"num_new_total": 0.5})


def test_an_older_version_decodes_a_heartbeat_with_statistics() -> None:
    class OldHeartbeat(msgspec.Struct):
        worker_id: str
        model: str

    new = msgspec.structs.replace(heartbeat("w1"), stats={"num_steps_total": 3})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=OldHeartbeat) == OldHeartbeat("w1", "m")


def test_jobs_and_events_from_a_chat_only_version_are_decoded() -> None:
    job = make_job()
    old = {
        name: value
        for name, value in msgspec.to_builtins(job).items()
        if name not in ("form", "prompt_ids", "task", "is_echoed")
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Job) == job
    assert (job.form, job.prompt_ids, job.task, job.is_echoed) == ("chat", (), "answer", False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([0, [1], "a", None, []]), type=Event) == Event(
        0, (1,), "a"
    )
