"""Texts that are too long: refused with their lines before anything is made of them, or cut and named."""

import dataclasses
import json

import numpy as np
import prepared
import pytest

from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.training import preparing, texts

# Of one token each to both tokenizers.
WORD = "cat "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips whose second caption and third prompt are long."""
    root = prepared.make_folder(tmp_path_factory.mktemp("clips") / "set")
    lines = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    lines[1] |= {"caption": WORD * 60, "prompt": "it sits"}
    lines[2] |= {"caption": "it sits", "prompt": WORD * 200}
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def run(folder, tmp_path, truncate=False, stages=("align", "finetune")) -> Run:
    values = prepared.values(folder)
    values.stages, values.condition.truncate = stages, truncate
    return Run(parse(values), tmp_path)


def sources(one: Run) -> list:
    return [(one, one.source(split)) for split in ("train", "validation")]


def check(one: Run, stages) -> None:
    texts.check(one, stages, texts.said_of(sources(one)))


def test_too_long_is_refused_with_file_and_line(folder, tmp_path):
    with pytest.raises(InputError) as refused:
        check(run(folder, tmp_path), ("align", "finetune"))
    first, second, *more = str(refused.value).splitlines()
    assert not more
    assert first.startswith(f'{folder}/manifest.jsonl:2: "caption" takes 61 tokens; config.condition.text_tokens has')
    assert second.startswith(f'{folder}/manifest.jsonl:3: "prompt with its references" takes ')
    assert second.endswith("config.condition.mllm_tokens has room for 112")


def test_preparing_refuses_them_before_it_encodes(folder, tmp_path):
    output = tmp_path / "records"
    with pytest.raises(InputError, match=r'manifest\.jsonl:2: "caption" takes 61 tokens'):
        preparing.prepare(run(folder, tmp_path).config, folder, str(output))
    assert not output.exists()


def test_texts_of_a_tokenizer_that_is_not_here_are_not_measured(folder, tmp_path, caplog):
    config = run(folder, tmp_path, stages=("finetune",)).config
    weights = dataclasses.replace(config.weights, tokenizer="nowhere", mllm="nowhere")
    elsewhere = Run(dataclasses.replace(config, weights=weights), tmp_path)
    preparing._check_texts(elsewhere, sources(elsewhere))
    assert "texts are not measured by the tokenizer: it is not here" in caplog.text
    with pytest.raises(InputError, match=r"manifest\.jsonl:3"):
        preparing._check_texts(Run(config, tmp_path), sources(Run(config, tmp_path)))


def test_cut_texts_are_counted_and_named_by_line(folder, tmp_path, caplog):
    check(run(folder, tmp_path, truncate=True), ("align", "finetune"))
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == [
        f'{folder}/manifest.jsonl: 1 of 7 texts "caption" are cut to the 48 tokens of config.condition.text_tokens',
        f"{folder}/manifest.jsonl: they are in lines 2 (61 tokens)",
    ]
    assert told[2].startswith(f'{folder}/manifest.jsonl: 1 of 7 texts "prompt with its references" are cut to the 112')
    assert told[3].startswith(f"{folder}/manifest.jsonl: they are in lines 3 (")


def test_words_that_no_tokenizer_knows_are_counted_and_named_by_preparing_as_well(tmp_path, caplog):
    root = prepared.make_folder(tmp_path / "set")
    lines = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    lines[1]["caption"] = lines[2]["caption"] = "\N{CJK UNIFIED IDEOGRAPH-732B} sits"
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checked = run(root, tmp_path)
    preparing._check_texts(checked, sources(checked))
    told = [text for text in caplog.messages if "does not know" in text]
    # A line without a prompt has its caption as one.
    assert [text.partition(" hold ")[0] for text in told] == ["2 of 7 captions", "1 of 7 prompts"]
    assert all(text.endswith("'\N{CJK UNIFIED IDEOGRAPH-732B}'") for text in told)


def test_cut_texts_keep_their_beginning_and_their_end_token(folder, tmp_path):
    whole, cut = (run(folder, tmp_path, truncate=truncate).preprocessor() for truncate in (False, True))
    text = "it sits " + WORD * 200
    tokens, length = cut.text(text)
    assert length == len(tokens) == 48
    assert tokens[-1] == cut.t5_tokenizer.eos_token_id
    assert list(tokens[:-1]) == cut.t5_tokenizer(text)["input_ids"][:47]
    picture = np.full((32, 32, 3), 100, np.uint8)
    read = cut.processor(text, [picture])
    assert read["lengths"] == 112
    # As the longest beginning that has room would be read.
    rooms = [n for n in range(2, 200) if whole.processor.most_tokens([("it sits " + WORD * n).strip()], [1])[0] <= 112]
    same = whole.processor(("it sits " + WORD * max(rooms)).strip(), [picture])
    for name in read:
        np.testing.assert_array_equal(read[name], same[name], err_msg=name)
    for one in (whole, cut.whole()):
        with pytest.raises(InputError, match="at most 48 are accepted"):
            one.text(text)
        with pytest.raises(InputError, match="max_length is 112"):
            one.processor(text, [picture])


def test_short_texts_are_read_alike_whether_long_ones_are_cut_or_not(folder, tmp_path):
    whole, cut = (run(folder, tmp_path, truncate=truncate).preprocessor() for truncate in (False, True))
    for text in ("", "it sits", "a red cat jumps"):
        np.testing.assert_array_equal(whole.text(text)[0], cut.text(text)[0])
        np.testing.assert_array_equal(whole.processor(text, [])["tokens"], cut.processor(text, [])["tokens"])


def test_captions_of_no_video_are_measured_too(folder, tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text(f"a cat\n\n{WORD * 150}\n")
    values = prepared.values(folder)
    values.stages, values.align.caption_share, values.data.captions = ("align",), 0.5, str(file)
    values.data.source = "critters"
    checked = Run(parse(values), tmp_path)
    with pytest.raises(InputError) as refused:
        texts.check(checked, ("align",), [])
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"{file}:3: takes ")
    assert {line.split(";")[1].split()[0] for line in (first, second)} == {
        "config.condition.text_tokens",
        "config.condition.mllm_tokens",
    }
    # Whoever reads no captions is not asked.
    texts.check(checked, ("finetune",), [])


@pytest.mark.parametrize("broken", [None, "older", "lines", "id", "type"])
def test_records_have_their_texts_measured_without_their_videos(folder, tmp_path, caplog, broken):
    output = tmp_path / "records"
    prepared.run(folder, output)
    said = output / "texts.jsonl"
    lines = said.read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["id"] for each in told] == json.loads((output / "ids.json").read_text())
    assert [each["subjects"] for each in told] == [0, 1, 1, 2, 0, 2, 1]
    values = prepared.values(output, "records")
    values.stages = ("align", "finetune")
    records = Run(parse(values), tmp_path)
    if broken == "older":
        said.unlink()
        check(records, ("align", "finetune"))
        assert "an older version prepared these records" in caplog.text
        return
    if broken is None:
        message = (
            f'{said}:2: "caption" takes 61 tokens; config.condition.text_tokens has room for 48\n{said}:3: "prompt'
        )
    elif broken == "lines":
        said.write_text("\n".join(lines[:-1]) + "\n")
        message = f"{said} is damaged: it has 6 lines for 7 records"
    elif broken == "id":
        said.write_text("".join(line + "\n" for line in lines[::-1]))
        message = "the record is '"
    else:
        said.write_text("".join(json.dumps(each | {"caption": 3}) + "\n" for each in told))
        message = "caption is 3; it must be of type str"
    with pytest.raises(InputError) as refused:
        check(records, ("align", "finetune"))
    assert message in str(refused.value)
