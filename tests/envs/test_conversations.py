"""Saved conversations: every form they come in, and everything that is wrong with them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.prompts import Layout, build_prompt
from envs import EnvError, make_text_env, register_checker
from envs.questions import conversations, log
from envs.questions.conversations import Conversation, Said, read_conversations
from envs.questions.log import as_json, from_json, read_log
from envs.questions.log_env import judge
from experience.seeds import SeedRange, Split

HI: Said = ("user", "Hi?")
CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [found for _, found in read_conversations(path)]


def chats(n: int, **more: Any) -> list[dict[str, Any]]:
    """``n`` conversations that begin differently."""
    return [{"messages": [{"role": "user", "content": f"message {i}"}, CHAT[1]], **more} for i in range(n)]


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        CHAT,
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": "Hi?"},
        {"messages": json.dumps(CHAT, indent=1)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, CHAT[1]]},
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Hi?"}]}, CHAT[1]]},
        {
            "messages": [
                CHAT[0],
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Rude?"},
                        {"type": "output_text", "text": "Hello."},
                    ],
                },
            ]
        },
        {"messages": [{"role": "assistant", "content": "Welcome."}, *CHAT]},  # a greeting
        {"messages": CHAT, "tools": []},
        {"messages": CHAT, "tools": "[]", "functions": "null"},
    ],
)
def test_forms_of_a_conversation(row: Any, tmp_path: Path) -> None:
    [found] = read(write(tmp_path / "chats.jsonl", row))
    assert found.turns[0] == HI
    assert found.system == ""
    assert found.turns[1:] in ((("assistant", "Hello."),), ())


def test_system_messages_answers_and_messages_of_one_speaker_in_a_row(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi?"},
            {"role": "user", "content": "Anyone?"},
        ],
        "answer": {"ground_truth": 2},
    }
    [found] = read(write(tmp_path / "chats.jsonl", row))
    assert found == Conversation(system="Be brief.", turns=(("user", "Hi?\n\nAnyone?"),), answer="2")


def test_a_system_message_beside_the_conversation(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Be kind."}
    brief = "Be brief."
    beside = [(brief, CHAT), (brief, [own, *CHAT]), (None, CHAT), (" ", CHAT)]
    rows = [{"system": system, "messages": messages} for system, messages in beside]
    path = write(tmp_path / "chats.jsonl", *rows)
    assert [found.system for found in read(path)] == [brief, "Be kind.", "", ""]


def test_a_prompt_may_begin_with_json(tmp_path: Path) -> None:
    asked = '[{"name": "Ada"}] As YAML, please.'
    [found] = read(write(tmp_path / "chats.jsonl", {"prompt": asked}))
    assert found.turns == (("user", asked),)


def test_files_and_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [*CHAT, {"role": "user", "content": str(i)}]} for i in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "one.json").write_text(json.dumps(CHAT))
    (tmp_path / "row.json").write_text(json.dumps(rows[0]))
    write(tmp_path / "bom.jsonl")
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows[0]).encode() + b"\r\n\r\n")
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "table.parquet")
    table.to_json(tmp_path / "lines.json")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    expected = read(write(tmp_path / "chats.jsonl", *rows))
    assert [found.turns[-1][1] for found in expected] == ["0", "1", "2"]
    assert read(tmp_path / "list.json") == expected
    assert read(tmp_path / "table.parquet") == expected
    assert read(tmp_path / "lines.json") == expected
    assert read(tmp_path / "saved") == expected
    assert read(tmp_path / "both") == 2 * expected
    assert read(tmp_path / "bom.jsonl") == expected[:1]
    assert read(tmp_path / "row.json") == expected[:1]
    assert len(read(tmp_path / "one.json")) == 1


def test_a_link_to_nowhere_is_no_file_of_a_log(tmp_path: Path) -> None:
    write(tmp_path / "chats.jsonl", CHAT)
    (tmp_path / ".#chats.jsonl.lock").symlink_to(tmp_path / "nowhere")
    assert read_log(tmp_path).conversations == 1


def test_a_thought_in_a_logged_reply_is_not_in_a_prompt(tmp_path: Path) -> None:
    thinking = {"role": "assistant", "content": "<think>Rude?</think>\n\nHello."}
    path = write(tmp_path / "chats.jsonl", {"messages": [CHAT[0], thinking, CHAT[0], thinking]})
    [found] = read(path)
    assert found.turns[:3] == (HI, ("assistant", "Hello."), HI)
    endless = {"role": "assistant", "content": "<think>Rude"}
    rows = [{"messages": [CHAT[0], endless, CHAT[0]]}, {"messages": [CHAT[0], endless]}]
    said_nothing, last = read(write(path, *rows))
    assert said_nothing == "an empty message"
    assert last.turns[0] == HI  # what the last reply is like does not matter


# --- what is passed over, and what is an error -----------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [*CHAT, {"role": "user", "content": [{"type": "tool_result"}]}]}, "tools"),
        ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{}], "content": None}]}, "tools"),
        ({"messages": [*CHAT, {"role": "tool", "content": "4"}]}, "tools"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "images, sound or files",
        ),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "images, sound or files"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "a role other than"),
        ({"messages": [{"content": "x"}]}, "a role other than"),
        ({"messages": []}, "no user turn"),
        ({"messages": [CHAT[1]]}, "no user turn"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user turn"),
        ({"messages": [{"role": "user", "content": " "}]}, "an empty message"),
        ({"messages": [{"role": "user", "content": None}]}, "an empty message"),
        ({"messages": [*CHAT, {"role": "system", "content": "x"}, CHAT[0]]}, "a system message after"),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, "more than 65536 characters"),
        ({"messages": 20_000 * CHAT}, "more than 65536 characters"),  # its prompts would take gigabytes
        ({"messages": [{"role": "user", "content": "x" * 5_000_000}]}, "more than 4 MiB in a line"),
    ],
)
def test_what_is_passed_over_is_counted(row: Any, reason: str, tmp_path: Path) -> None:
    rows = [*chats(1), row, row, *chats(2)[1:]]
    found = read_log(write(tmp_path / "chats.jsonl", *rows))
    assert found.conversations == 2
    [(why, count)] = found.skipped.items()
    assert why.startswith(reason)
    assert count == 2
    assert found.first_skipped == {why: "line 2"}
    with pytest.raises(EnvError, match=f"no conversation to learn from: 1 with {reason}"):
        read_log(write(tmp_path / "alone.jsonl", row))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"messages": [\n', "line 1: it is not JSON"),
        (json.dumps(CHAT).encode() + b"\n{}\n", "line 2: it has none of messages, conversations"),
        (b"\n\n17\n", "line 3: it is not a list of messages"),
        (b'{"messages": ["x"]}\n', "line 1: it is not a list of messages"),
        (b'{"messages": "[{broken"}\n', "line 1: it is not JSON"),
        (b'{"messages": [], "answer": [1, 2]}\n', "line 1: the answer is a list of 2"),
        (b'{"x": "\xff"}\n', r"line 1: it is not JSON \(it is not text in UTF-8\)"),
        (b"[" * 100_000 + b"\n", "line 1: it is not JSON"),
        (b"1" * 10_000 + b"\n", "line 1: it is not JSON"),
        (b"", "no conversation to learn from"),
    ],
)
def test_broken_lines_are_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(content)
    with pytest.raises(EnvError, match=says) as error:
        read_log(tmp_path / "chats.jsonl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("chats.csv", b"x", r"must be a folder, or end in \.jsonl, \.json, \.parquet"),
        ("chats.json", b"17", "it is not a list of conversations"),
        ("chats.json", b'{"data": []}', "conversation 1: it has none of messages, .*; it has data"),
        ("chats.json", b"[", "it is not JSON"),
        ("chats.parquet", b"PAR1 not", "chats.parquet: .*mend or remove it"),
        ("saved/data.arrow", b"nothing", "data.arrow"),
        ("saved/state.json", b"{}", "has no file that ends in"),
    ],
)
def test_files_that_are_none(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "saved").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnvError, match=says) as error:
        read_log(tmp_path / name.partition("/")[0])
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="cannot be read: No such file"):
        read_log(tmp_path / "nowhere.jsonl")


def test_an_answer_that_nobody_gave(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", *chats(3, gold="x"))
    assert sum(read_log(path, "gold").answered) == 3
    assert sum(read_log(path).answered) == 0
    with pytest.raises(EnvError, match=r"has no right answer under 'golden': name their column with answer="):
        read_log(path, "golden")


def test_what_does_not_fit_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "chats.jsonl", *chats(9))
    monkeypatch.setattr(log, "MAX_PROMPTS", 5)
    found = read_log(path)
    assert (found.conversations, sum(found.prompts.sizes), found.is_cut) == (5, 5, True)
    (tmp_path / "list.json").write_text(json.dumps(chats(9)))
    monkeypatch.setattr(conversations, "MAX_LIST_BYTES", 10)
    with pytest.raises(EnvError, match="have to be JSON Lines"):
        read_log(tmp_path / "list.json")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "role", "content", "from", "value", "prompt", "answer", "tools"]
                ),
                inner | st.sampled_from(["user", "assistant", "system", "tool"]),
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_line_is_read_passed_over_or_named(row: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", row)
    with suppress(EnvError):
        assert all(isinstance(found, Conversation | str) for found in read(path))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=9)), min_size=1, max_size=4)
)
def test_nothing_that_is_said_passes_for_a_message(said: Any) -> None:
    assert list(from_json(as_json(said))) == said


# --- parts ---------------------------------------------------------------------------------------


def grown(i: int) -> list[dict[str, Any]]:
    """A conversation of three turns as a server logs it: a line for each request."""
    whole = [
        {"role": role, "content": f"{role} {i} {turn}"} for turn in range(3) for role in ("user", "assistant")
    ]
    return [{"messages": whole[: 2 * turn]} for turn in (1, 2, 3)]


def test_no_conversation_is_in_two_parts(tmp_path: Path) -> None:
    rows = [line for i in range(60) for line in grown(i)]
    found = read_log(write(tmp_path / "chats.jsonl", *rows))
    parts: list[list[Any]] = [
        [from_json(found.prompts.draw(part, i, None).question) for i in range(size)]  # type: ignore[arg-type]
        for part, size in enumerate(found.prompts.sizes)
    ]
    begun = [{said[0] for said in part} for part in parts]
    assert sum(map(len, begun)) == 60
    assert not begun[0] & begun[1]
    assert not begun[1] & begun[2]
    assert len(parts[0]) == 3 * len(begun[0])  # every turn is trained on
    for held_out in parts[1:]:
        assert [len(said) for said in held_out] == [5] * len(held_out)  # and the last alone is measured
    # The same conversations, each in one line, are the same prompts.
    whole = read_log(write(tmp_path / "whole.jsonl", *(grown(i)[-1] for i in range(60))))
    assert whole.prompts.sizes == found.prompts.sizes


# --- the env -------------------------------------------------------------------------------------


def test_prompts_of_a_conversation(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, *CHAT, {"role": "user", "content": "4?"}]}
    path = write(tmp_path / "chats.jsonl", row)
    words = make_text_env("Logs-v0", {"file": str(path)}).words
    layout = Layout(place="chat")
    question = as_json([("system", "Be brief."), HI, ("assistant", "Hello."), ("user", "4?")])
    said = build_prompt(words, question, ["Rhyme.\n### user\nx\n### assistant\ny"], layout).messages
    assert [(m.role, m.content) for m in said] == [
        ("system", "Be brief.\nRhyme."),
        ("user", "x"),
        ("assistant", "y"),
        HI,
        ("assistant", "Hello."),
        ("user", "4?"),
    ]
    assert words.situation(question) == "4?"
    after = build_prompt(words, question, ["Rhyme."], Layout()).messages
    assert after[-1].content == "4?\nExperience: Rhyme."
    dropped = make_text_env("Logs-v0", {"file": str(path), "system": "drop"}).unwrapped
    [prompt] = [dropped.log.prompts.draw(p, 1, None) for p in range(3) if dropped.part_sizes[p]]  # type: ignore[attr-defined]
    assert from_json(prompt.question)[0] == HI


@pytest.mark.parametrize(
    ("reply", "gold", "check", "right"),
    [
        ("It is Paris, of course.", "paris", "contains", True),
        ("It is 42.", "4", "contains", False),
        ("New York it is", "new york", "contains", True),
        ("York, new", "new york", "contains", False),
        ("", "4", "contains", False),
        ("Paris.", "paris", "exact", True),
        ("It is Paris.", "paris", "exact", False),
        ("The answer is 1/2.", "0.5", "math", True),
        ("The answer is 3.", "0.5", "math", False),
        ("anything", "", "contains", None),
        ("?!", "?!", "contains", True),
        ("!", "?!", "exact", False),
        ("**Paris**.", "Paris", "exact", True),
        ("- Paris", "Paris", "exact", True),
        ("Team:billing", "billing", "contains", True),
        ("He said: \u201cNew York, USA\u201d \u2026", "new york usa", "contains", True),
        ("It costs $1,000.", "1,000", "contains", True),
        ("(\u22125)", "-5", "exact", True),
        ("C++, I think...", "C++", "contains", True),
        *(
            (reply, gold, check, False)
            for reply, gold in [
                *(
                    ("5", "-5"),
                    ("-5", "5"),
                    ("C", "C++"),
                    ("C++", "C"),
                    ("1 5", "1.5"),
                    ("1.5", "5"),
                    (".5", "5"),
                ),
                *(("1,000", "1"), ("1/2", "2"), ("3 - 4", "3 + 4"), ("Jean-Luc", "Jean"), ("10:30", "30")),
                *(("C#", "C"), ("node.js", "node"), ("-$5", "5"), ("(-5)", "5")),
            ]
            for check in ("exact", "contains")
        ),
        *(
            (reply, gold, "contains", True)
            for reply, gold in [
                *(
                    ("答案是北京。", "北京"),
                    ("東京、大阪", "大阪"),
                    ("«Париж».", "париж"),
                    ("हिन्दी।", "हिन्दी"),
                ),
                *(("Paris\uff01", "Paris"), ("cafe\u0301", "café"), ("Jean\u2011Luc", "Jean-Luc")),
            ]
        ),
        ("北京。", "北京", "exact", True),
        ("京北", "北京", "contains", False),
        ("Jean\u2011Luc", "Jean", "contains", False),
        ("It is 5.", "-5", "contains", False),
        ("- 5", "5", "exact", False),
    ],
)
def test_replies_are_held_against_answers(reply: str, gold: str, check: str, right: bool | None) -> None:
    assert judge(reply, gold, check) is right


@pytest.mark.parametrize("run_seed", range(5))
def test_where_replies_are_judged_only_prompts_with_an_answer_are_held_out(
    run_seed: int, tmp_path: Path
) -> None:
    """Of a large log few are played: with one answer in a hundred hardly any of them could be judged."""

    def lines(n: int, **more: str) -> list[dict[str, Any]]:
        return [{"messages": [{"role": "user", "content": f"{n} {more} {i}?"}], **more} for i in range(n)]

    path = write(tmp_path / "log.jsonl", *lines(900), *lines(100, answer="x"))
    for check, are_all in (("contains", True), ("rarely", False)):
        register_checker("rarely", lambda reply, answer: None)
        env = make_text_env("Logs-v0", {"file": str(path), "check": check})
        for split in Split:
            seeds = SeedRange(split=split, run_seed=run_seed, start=0, size=64)
            are_answered = ["gold" in env.reset(seed=seed)[1] for seed in seeds]
            assert all(are_answered) == (are_all and split != Split.TRAIN)
    few = write(tmp_path / "few.jsonl", *lines(300), *lines(6, answer="x"))
    assert sum(read_log(few).prompts.sizes) == 306


def test_episodes(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", *chats(9), *chats(1, answer="hello"))
    env = make_text_env("Logs-v0", {"file": str(path)})
    for seed in range(9):
        _, info = env.reset(seed=seed)
        assert info["logged"] == "Hello."
        *_, terminated, truncated, info = env.step("<think>hello</think>Goodbye")
        assert (terminated, truncated) == (False, True)
        assert info["not_judged"] is True
    answered = write(tmp_path / "answered.jsonl", *chats(9, answer="hello"))
    env = make_text_env("Logs-v0", {"file": str(answered)})
    for reply, right in (("Hello!", True), ("<think>hello</think>Goodbye", False)):
        assert env.reset(seed=1)[1]["gold"] == "hello"
        _, reward, terminated, _, info = env.step(reply)
        assert (reward, terminated, info["is_success"]) == (float(right), True, right)


def test_a_checker_of_ones_own(tmp_path: Path) -> None:
    path = str(write(tmp_path / "chats.jsonl", *chats(9)))
    with pytest.raises(EnvError, match="a checker is one of contains, exact, math"):
        make_text_env("Logs-v0", {"file": path, "check": "os:system"})
    register_checker("polite", lambda reply, answer: "please" in reply if reply else None)
    env = make_text_env("Logs-v0", {"file": path, "check": "polite"})
    assert env.unwrapped.judged == env.unwrapped.part_sizes  # type: ignore[attr-defined]
    for reply, right in (("please", True), ("no", False), ("", None)):
        env.reset(seed=0)
        assert env.step(reply)[-1].get("is_success") is right
    register_checker("wordy", lambda reply, answer: "no")  # type: ignore[arg-type,return-value]
    with pytest.raises(
        ValueError, match="what wordy says of a reply is 'no', which is neither true nor false"
    ):
        judge("please", "", "wordy")
    with pytest.raises(EnvError, match="system must be keep or drop"):
        make_text_env("Logs-v0", {"file": path, "system": "x"})
