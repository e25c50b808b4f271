"""Models of the paper's family: drawn, converted, saved and loaded, and streamed with their real component classes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from bases import CONFIG, make_bases, qwen_model, wan_transformer
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2ForCausalLM, UMT5EncoderModel

from streamchar.cli.main import main
from streamchar.codecs.oobleck import oobleck_vae
from streamchar.codecs.text import umt5_encoder
from streamchar.codecs.wan import wan_vae
from streamchar.config.presets import paper, tiny
from streamchar.convert.conversion import Request, plan
from streamchar.convert.writer import carry_out
from streamchar.dit.cache import Conditions
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError, ConfigError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.stream.checkpoint import save_paper
from streamchar.stream.models import Models, load, random_models, save
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.session import Session
from streamchar.stream.state import StreamState
from streamchar.stream.weights import fill, homes, new_orchestrator_weights, on_meta, place

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
TEXT = "hello there, how are you today?"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory):
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def folder(bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model in float32, for parity."""
    out = tmp_path_factory.mktemp("model") / "out"
    request = Request(**bases.options(), height=64, width=64, dtype=torch.float32, max_bytes=150_000)
    for _ in carry_out(plan(request), out):
        pass
    return out


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    return load(folder)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def states(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**model.state_dict(), **dict(model.named_buffers())}


# -- parity of a converted model with what it was made of -------------------------------------------------


@torch.no_grad()
def test_converted_dit_is_the_transformer_that_it_was(bases, models: Models) -> None:
    reference = wan_transformer(CONFIG.dit)
    files = (bases.video / "transformer").glob("*.safetensors")
    reference.load_state_dict({key: value for file in files for key, value in load_file(file).items()})
    x_v, text = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 5, 32)
    sigma = torch.tensor([0.7]).repeat(1, 12)
    sigma[:, :4] = 0  # TI2V: the first frame is clean
    conditions = Conditions(text=text)
    got = models.dit(x_v, None, None, sigma, models.dit.layout(conditions, x_v, None), conditions)
    assert relative_error(got.video, reference(x_v, 1000 * sigma, text, return_dict=False)[0]) < 1e-5


@torch.no_grad()
def test_orchestrator_has_the_hidden_states_of_the_language_model(bases, folder: Path) -> None:
    reference = Qwen2ForCausalLM.from_pretrained(bases.lm, dtype=torch.float32).eval()
    ours = load(folder).orchestrator
    ours.segment.zero_()  # ours: what tells text from audio
    ids = torch.randint(0, 250, (1, 40))
    expected = reference(ids, output_hidden_states=True).hidden_states[-1]
    assert relative_error(ours.prefix(None, ids, None).text.states, expected) < 1e-5


@torch.no_grad()
def test_orchestrator_at_full_width() -> None:
    """Two layers of Qwen2.5-3B's width; text in one go, sound in two pieces behind it."""
    config = replace(paper().orchestrator, layers=2, vocab_size=300)
    draw = torch.Generator().manual_seed(0)
    reference = fill(on_meta(lambda: qwen_model(config)), {}, "cpu", torch.float32, draw).eval()
    ours = on_meta(lambda: Orchestrator(config)).eval()
    places, known = homes(ours), new_orchestrator_weights(config, 0)
    for name, value in reference.model.state_dict().items():
        if value.ndim == 1:
            value.add_(0.1 * torch.randn(value.shape, generator=draw))  # shared: biases and norms of both
        place(places.pop("backbone." + name), value)
    for name, home in places.items():
        place(home, torch.zeros_like(known[name]) if name == "segment" else known[name])
    ids, sound = torch.randint(0, 300, (1, 12), generator=draw), torch.randn(1, 6, 64, generator=draw)
    embedded = torch.cat([reference.model.embed_tokens(ids), ours.audio_in(sound)], dim=1)
    expected = reference(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-1]
    prefix = ours.prefix(None, ids, sound[:, :2])
    assert relative_error(prefix.text.states, expected[:, :12]) < 1e-5
    whole, pieces = ours.prefix(None, ids, sound), ours.extend(prefix, sound[:, 2:])
    for layer in range(2):
        assert relative_error(pieces.keys[layer], whole.keys[layer]) < 1e-5


@torch.no_grad()
def test_first_frame_latents_are_those_of_the_image_pipeline(bases, models: Models) -> None:
    vae = AutoencoderKLWan.from_pretrained(bases.video / "vae", low_cpu_mem_usage=False)
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), expand_timesteps=True
    )
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = pipe.prepare_latents(
        image, 1, 8, 64, 64, num_frames=9, dtype=torch.float32, device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )[1]  # fmt: skip
    got = models.video_codec.encode(image[:, :, None])
    assert got.shape == (1, 8, 1, 4, 4) and relative_error(got, expected) < 1e-5
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (vae.config.latents_mean, vae.config.latents_std))
    back = vae.decode(expected / (1.0 / std) + mean, return_dict=False)[0]  # as the pipelines hand them to the VAE
    assert relative_error(models.video_codec.decode(got), back) < 1e-4


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(bases, models: Models) -> None:
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(bases.video / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(bases.video / "text_encoder").eval(),
        vae=AutoencoderKLWan.from_pretrained(bases.video / "vae", low_cpu_mem_usage=False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    prompts = ["  A  woman &amp;amp;\n smiles &lt;3 ", "", "caf\u00e9 \u201cquoted\u201d", "word " * 130]
    expected = pipe._get_t5_prompt_embeds(prompts, max_sequence_length=512)
    got = models.prompt_encoder.encode(prompts)
    assert got.shape == (4, 512, 32) and models.prompt_encoder.max_tokens == 512
    assert relative_error(got, expected) < 1e-5
    assert not got[1, 1:].any() and got[3].any(-1).all()  # the last is cut, and full


# -- folders ----------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    made = random_models(CONFIG, dtype=torch.bfloat16)
    save(made, tmp_path)
    again = load(tmp_path)
    assert again.config == made.config and again.steps == made.steps == 4
    for name, part in made.components().items():
        one, other = states(part), states(again.components()[name])
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one), name
    assert again.dit.patch_embedding.weight.dtype == torch.bfloat16
    assert next(again.audio_codec.parameters()).dtype == again.orchestrator.sigma.rate.dtype == torch.float32
    wide = load(tmp_path, dtype=torch.float32)
    assert {p.dtype for part in wide.components().values() for p in part.parameters()} == {torch.float32}
    (tmp_path / "dit" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected diffusion_pytorch_model.safetensors or model.safetensors"):
        load(tmp_path)


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    made = random_models(CONFIG)
    save(made, tmp_path)
    save_paper(made, tmp_path, torch.bfloat16, max_bytes=100_000)
    (tmp_path / "dit" / "model.safetensors").unlink()
    assert len(list((tmp_path / "dit").glob("*.safetensors"))) > 3
    again = load(tmp_path, dtype=torch.float32)
    one, other = made.dit.state_dict(), again.dit.state_dict()
    assert all(torch.equal(one[k].bfloat16().float(), other[k]) for k in one)


def test_a_folder_of_parts_that_do_not_fit_is_refused(tmp_path: Path) -> None:
    made = random_models(CONFIG)
    save(made, tmp_path)
    path = tmp_path / "dit" / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "text_width": 16}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="width of the DiT's text"):
        load(tmp_path)
    path.write_text(json.dumps({**values, "ffn": 16}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not fit JointDiT.*wrong shape"):
        load(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_random_models_are_a_function_of_the_seed_and_of_nothing_else() -> None:
    before = torch.get_rng_state()
    for config in (CONFIG, tiny()):
        one, same, other = (random_models(config, seed=seed) for seed in (1, 1, 2))
        a, b, c = (m.dit.state_dict()["blocks.0.ffn.up.weight"] for m in (one, same, other))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert not any(p.requires_grad for part in one.components().values() for p in part.parameters())
    assert torch.equal(before, torch.get_rng_state())
    assert random_models(CONFIG).config.tokenizer == "bytes"  # a stand-in, and it says so
    with pytest.raises(ConfigError, match="tokens"):
        random_models(replace(CONFIG, orchestrator=replace(CONFIG.orchestrator, vocab_size=64)))


# -- streams ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(models: Models) -> StreamState:
    torch.manual_seed(1)
    picture, voice = torch.rand(3, 64, 64) * 2 - 1, 0.1 * torch.randn(49_152)
    return StreamCharPipeline(models).start(TEXT, character=picture, voice=voice, prompt="a calm man", steps=1)


class Three(Session):
    """A stream that ends with its third chunk, whatever the pointer of an untrained model says."""

    def generate(self, state, memory):
        made, after = super().generate(state, memory)
        self.latents = [*getattr(self, "latents", []), made.audio]
        return made, replace(after, finished=made.index == 2)


@pytest.fixture(scope="module")
def played(models: Models, state: StreamState):
    """Three chunks, the latents that they came from, and the state behind each."""
    session, chunks, states = Three(models, state), [], []
    for chunk in session:
        chunks.append(chunk)
        states.append(session.state)
    return chunks, session.latents, states


def test_a_stream_of_oobleck_is_its_decoding_at_once(models: Models, played) -> None:
    chunks, latents, _ = played
    whole = models.audio_codec.decode_at_once(torch.cat(latents, dim=1))[0].clamp(-1, 1)
    streamed = torch.cat([chunk.samples for chunk in chunks])
    assert len(chunks) == 3 and streamed.shape == (3 * 67_584,)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-4)
    alone = models.audio_codec.decode_at_once(latents[0])[0].clamp(-1, 1)
    assert (chunks[0].samples - alone).abs().max() > 1e-3  # what follows is heard before the seam
    assert all(chunk.frames.shape == (33, 64, 64, 3) for chunk in chunks)


def test_resumed_from_a_file_it_goes_on_to_the_bit(models: Models, played, tmp_path: Path) -> None:
    chunks, _, states = played
    states[0].save(tmp_path / "state")
    resumed = list(islice(Three(models, StreamState.load(tmp_path / "state")), 1))
    assert torch.equal(resumed[0].samples, chunks[1].samples) and torch.equal(resumed[0].frames, chunks[1].frames)


def test_say_with_a_converted_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.wav", tmp_path / "face.png"
    Image.new("RGB", (80, 70), (200, 120, 90)).save(picture)
    command = ["say", TEXT, "-o", str(out), "--model", str(folder), "--steps", "1", "--max-chunks", "1", "--json"]
    assert main([*command, "--character", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 67_584 and out.stat().st_size > 2 * 67_584


# -- the published sizes ------------------------------------------------------------------------------------


def test_parameters_of_the_paper_preset() -> None:
    """On the meta device. Public: Wan2.2-TI2V-5B 5.0 B, Qwen2.5-3B 3.09 B, umT5-XXL's encoder 5.68 B."""
    config = paper()
    with torch.device("meta"):
        parts = {
            "orchestrator": Orchestrator(config.orchestrator), "dit": JointDiT(config.dit),
            "video": wan_vae(config.video), "audio": oobleck_vae(config.audio), "text": umt5_encoder(config.prompt),
        }  # fmt: skip
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    backbone = sum(p.numel() for p in parts["orchestrator"].backbone.parameters())
    expert = config.dit.layers * (2 * config.dit.width * config.dit.ffn + config.dit.width + config.dit.ffn)
    own = sum(p.numel() for n, p in parts["dit"].named_parameters() if n.startswith(("audio.", "head.velocity.")))
    assert backbone == 3_085_938_688
    assert count["dit"] - expert - own == 4_999_787_712
    assert count["text"] == 5_680_910_336
    assert count["video"] == 704_688_668
    assert count["audio"] == 156_110_721
    assert (count["orchestrator"], count["dit"]) == (3_130_564_151, 7_759_874_419)
