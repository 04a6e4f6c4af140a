import json
from pathlib import Path

import numpy as np
import pytest
from bench.synthetic import synthetic_titles
from bench.workload import PathWorkload
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from igd_core.catalogue.tokenization import TitleTokenizer

EOS = "<|im_end|>"
SOURCE = (
    'The "Last" of the Wild',
    "The Wild Bunch | Part 2",
    "Night of the Hunter (Director's Cut)",
    "Amélie à Paris",
    "Back\\slash: The Movie",
    "千と千尋の神隠し",
    "Wild Night 1001 & 2",
    "/Root {of} <Evil>",
)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 400 tokens, saved as a checkpoint's would be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([title for title in SOURCE for _ in range(5)], trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def workload(tiny_tokenizer_dir: Path) -> PathWorkload:
    """80 titles full of quotes, backslashes, operators of grammars and characters of several bytes."""
    titles = synthetic_titles(SOURCE, n=80, mean_words=5.0)
    tokenizer = TitleTokenizer.from_directory(tiny_tokenizer_dir)
    paths = tokenizer.encode_paths(titles, max_tokens=512)
    return PathWorkload(
        titles=titles,
        offsets=paths.offsets,
        tokens=paths.tokens,
        frequency=np.arange(1, 81),
        tokenizer_dir=tiny_tokenizer_dir,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
    )
