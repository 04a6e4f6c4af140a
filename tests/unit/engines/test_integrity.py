"""A folder whose tensors or fields are not what the other says is refused, by name, in one line."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checkpoints import edit_config, edit_tensors, random_model, write_checkpoint
from transformers import GPT2Config, LlamaConfig

from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.integrity import check_folder, load_weights, read_config
from igd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.catalogue.tokenization import TitleTokenizer

    Edit = Callable[[dict[str, torch.Tensor]], None]


def llama(tokenizer: TitleTokenizer, **changes: Any) -> LlamaConfig:
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**(shape | changes))


@pytest.fixture(scope="module")
def pristine(tokenizer: TitleTokenizer, definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pristine") / "tiny", random_model(llama(tokenizer)), definition)


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "tiny")


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_checkpoint(directory, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_one_weight_that_is_no_number_is_refused_by_name(directory: Path, name: str, value: float) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[7] = value

    edit_tensors(directory, damage)
    assert refusal(directory) == f"{directory}: weights that are not finite in float32: {name}"
    with pytest.raises(ModelError) as caught:
        check_folder(directory)
    assert str(caught.value) == f"{directory}: weights that are not finite: {name}"


def test_weights_too_large_for_a_data_type_are_refused_in_it(directory: Path) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = 1e6

    edit_tensors(directory, grow)
    load_checkpoint(directory, device="cpu")
    with pytest.raises(ModelError, match=r"weights that are not finite in float16: model\.norm\.weight$"):
        load_checkpoint(directory, device="cpu", dtype="float16")


def add_biases(tensors: dict[str, torch.Tensor]) -> None:
    for layer in range(2):
        for name in ("q", "k"):
            weight = tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            tensors[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = torch.randn(len(weight))


def test_tensors_that_the_architecture_has_no_place_for_are_refused_by_name(directory: Path) -> None:
    edit_tensors(directory, add_biases)
    said = refusal(directory)
    assert "'llama' has no place for 4 tensors of the file: model.layers.0.self_attn.k_proj.bias," in said
    assert said.endswith("and 1 more")


def test_layers_beyond_those_of_the_config_are_refused_by_name(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=1)
    assert "has no place for 9 tensors of the file: model.layers.1.input_layernorm.weight" in refusal(directory)


@pytest.mark.parametrize("at", ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_weights_stored_as_whole_numbers_without_a_quantisation_are_refused(directory: Path, at: str) -> None:
    def encode(tensors: dict[str, torch.Tensor]) -> None:
        tensors[at] = (tensors[at] * 100).to(torch.int8)

    edit_tensors(directory, encode)
    assert f"{at} is stored as I8" in refusal(directory)


def test_tables_that_the_model_computes_itself_are_let_pass(directory: Path) -> None:
    def add_tables(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool).tril()
        tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e4)

    expected = load_checkpoint(directory, device="cpu").model(input_ids=torch.tensor([[5, 6]])).logits
    edit_tensors(directory, add_tables)
    found = load_checkpoint(directory, device="cpu").model(input_ids=torch.tensor([[5, 6]])).logits
    torch.testing.assert_close(found, expected)


def test_a_bias_that_is_called_as_a_mask_is_and_has_not_its_shape_is_refused(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({"model.layers.0.self_attn.bias": torch.ones(32)}))
    assert "no place for 1 tensors of the file: model.layers.0.self_attn.bias" in refusal(directory)


def test_masks_in_old_files_of_gpt2_are_let_pass(
    tokenizer: TitleTokenizer, definition: dict[str, Any], tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    directory = write_checkpoint(tmp_path / "gpt2", random_model(config), definition)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    edit_tensors(directory, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask}))
    assert load_checkpoint(directory, device="cpu").model.config.model_type == "gpt2"


def tied(directory: Path, edit: Edit) -> None:
    edit_config(directory, tie_word_embeddings=True)
    edit_tensors(directory, edit)


def test_an_output_layer_tied_by_the_config_may_stand_in_the_file_if_it_is_the_same(directory: Path) -> None:
    tied(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    model = load_checkpoint(directory, device="cpu", packed=False).model
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is not None
    assert head.weight is inputs.weight


def test_an_output_layer_tied_by_the_config_that_differs_in_the_file_is_refused(directory: Path) -> None:
    edit_config(directory, tie_word_embeddings=True)
    assert "ties lm_head.weight to model.embed_tokens.weight (tie_word_embeddings)" in refusal(directory)


def test_a_file_without_the_output_layer_that_the_config_does_not_tie_is_refused(directory: Path) -> None:
    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]

    edit_tensors(directory, remove)
    assert "1 tensors of the architecture are missing, lm_head.weight first" in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": "2"}, "config.json: Field 'num_hidden_layers' expected int, got str (value: '2')"),
        ({"rms_norm_eps": "1e-6"}, "config.json: Field 'rms_norm_eps' expected float, got str"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_parameters.rope_theta is the text"),
        ({"hidden_act": "own"}, "config.json: hidden_act is 'own', which this release of transformers does not know"),
        ({"rope_parameters": {"rope_type": "own", "rope_theta": 1e4}}, "rope_parameters.rope_type is 'own', which"),
        ({"num_attention_heads": 6}, "The hidden size (32) is not a multiple of the number of attention heads (6)"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) is no multiple of num_key_value_heads (3)"),
        ({"num_key_value_heads": 8}, "num_attention_heads (4) is no multiple of num_key_value_heads (8)"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0; at least 1 is needed"),
        ({"max_position_embeddings": -1}, "config.json: max_position_embeddings is -1; at least 1 is needed"),
        ({"quantization_config": {"quant_method": "own"}}, "quantization_config.quant_method is 'own'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "`pip install optimum`"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "`pip install gptqmodel`"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "`pip install -U bitsandbytes",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_cannot_be_is_named_and_a_library_that_is_missing_too(
    directory: Path, changes: dict[str, Any], said: str
) -> None:
    edit_config(directory, **changes)
    assert said in refusal(directory)


def test_tensors_are_judged_without_reading_them(directory: Path) -> None:
    config = read_config(directory)
    assert load_weights(directory, config, device_map={"": "meta"}).device.type == "meta"
    edit_tensors(directory, add_biases)
    with pytest.raises(ModelError, match="no place for 4 tensors"):
        check_folder(directory)


def test_a_folder_is_judged_for_engines_that_load_it_by_themselves(directory: Path) -> None:
    check_folder(directory)
    edit_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    check_folder(directory)  # whether its library is here is that engine's affair
    edit_config(directory, quantization_config=None, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight"):
        check_folder(directory)

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]

    edit_tensors(directory, remove)
    check_folder(directory)
    edit_config(directory, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"missing, lm_head\.weight first"):
        check_folder(directory)
    edit_config(directory, model_type="one that transformers does not know")
    check_folder(directory)
