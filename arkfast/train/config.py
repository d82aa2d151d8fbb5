"""Every flag of ``arkfast train``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from arkfast import command_line
from arkfast.console import ConsoleOptions
from arkfast.records import OnTruncated

Attention = Literal["sdpa", "eager", "flash_attention_2"]
CHANGEABLE = ("rows", "student_model", "teacher_model")
"""What ``--allow_changed`` may name."""

FLOAT32 = (2.0**-126, (2.0 - 2.0**-23) * 2.0**127)
"""Least and largest number of float32 that is not rounded to a subnormal one, which scores are divided in."""
LONGEST_WAIT = 365 * 24 * 3600
"""Seconds; clocks of collectives count nanoseconds in 64 bits."""
MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ConsoleOptions):
    """What to train, on what, how, and where to write it. Names and defaults follow open-audio-opd where it has them."""

    headings: ClassVar[dict[str, str]] = {
        "stage": command_line.FIRST, "student_revision": command_line.MODEL, "teacher_model": command_line.FIRST,
        "teacher_revision": command_line.MODEL, "task": command_line.DATA, "train_data": command_line.FIRST,
        "train_max_samples": command_line.DATA, "gradient_accumulation_steps": command_line.TRAINING, "sharding": command_line.MACHINE,
        "freeze": command_line.TRAINING, "activation_checkpointing": command_line.MACHINE,
        "per_device_eval_batch_size": command_line.CHECKS, "dataloader_num_workers": command_line.MACHINE,
        "on_bad_audio": command_line.DATA, "calibrate_only": command_line.CHECKS, "max_steps": command_line.TRAINING,
        "opd_top_k": command_line.OBJECTIVE, "asr_opd_max_new_tokens": command_line.DECODING, "ctc_weight": command_line.OBJECTIVE,
        "channel": command_line.DATA, "eval_freq": command_line.CHECKS, "save_freq": command_line.OUTPUT,
        "model_dtype": command_line.MODEL, "device": command_line.MACHINE,
    }  # fmt: skip

    stage: Literal["opd", "td", "sft", "ctc_head"] = "opd"
    """opd: distil on the student's own transcripts; td: learn the teacher's transcripts; sft: learn the references; ctc_head: leave the
    student as it is and train a small head beside it, which tells arkfast transcribe when each word was said."""
    student_model: Path
    """Checkpoint to train: its folder, or a Hugging Face repository as organisation/name."""
    student_revision: str | None = None
    """Branch, tag or commit of the student's repository; its default branch by default."""
    teacher_model: Path | None = None
    """The teacher's checkpoint, folder or repository; needed by opd and td."""
    teacher_revision: str | None = None
    """Branch, tag or commit of the teacher's repository; its default branch by default."""
    teacher_prompt: str | None = None
    """What the hf_causal_lm teacher is asked: the instruction beside the audio in its chat template, a whole prompt with its audio token,
    or an encoder-decoder's first tokens; its own prompt by default."""
    teacher_backend: str = "arkasr"
    """How the teacher is run: arkasr is an ARK-ASR model with the student's vocabulary; qwen3_asr_teacher_forcing and
    qwen3_asr_transformers are Qwen3-ASR with it; hf_causal_lm is any other speech model of Transformers; a module of your own is named in
    full, such as my_package.my_teacher."""
    teacher_full_attention: bool = False
    """Let the encoder of a Qwen3-ASR teacher attend to the whole clip, as open-audio-opd did, instead of to windows of 8 s as the model was
    trained."""
    unsupported_language: Literal["skip", "sft", "none"] = "skip"
    """What becomes of rows whose language, by the data, a teacher that is told languages does not know: skip leaves them out of the loss
    and counts them; sft has the student learn their references by cross-entropy, and skips those without text; none tells the teacher no
    language, and it detects one of its own."""
    task: str = "asr"
    """What is learnt; rows whose task is another are errors."""
    train_data: Path
    """JSONL manifest to train on (audio, text, task, begin_time, end_time, id, language)."""
    eval_data: Path | None = None
    """JSONL manifest with references on which WER is measured during training."""
    output_dir: Path
    """Folder of the run: log, checkpoints, best and last model."""
    train_max_samples: int = -1
    """Use only the first rows of the training manifest; 0 or below uses all."""
    shuffle_train: bool = True
    """Shuffle the rows anew each epoch, with neighbours of similar length."""
    per_device_train_batch_size: int = 1
    """Utterances in a micro-batch, the most of them where batch_seconds is given."""
    batch_seconds: float = 0.0
    """Largest micro-batch in audio seconds, padding included: rows of similar length share one while they fit; 0 sets no limit."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of each process in a step; every token of the window weighs the same, whichever process saw it."""
    micro_batches_per_step: int = 0
    """Micro-batches of all processes in a step, which keeps the step when their number changes; 0 is processes times
    gradient_accumulation_steps."""
    sharding: Literal["auto", "none", "optimizer", "full"] = "auto"
    """none: one process holds all; optimizer: weights, optimizer state and gradients are sharded, and the weights are gathered once a step;
    full: they are freed after each use besides, for least memory; auto is none for one process and optimizer for several."""
    rollout_copy: Literal["auto", "on", "off"] = "auto"
    """Whether each process of a sharded student keeps a copy of its decoder for rollouts, which a GPU then runs as CUDA graphs: auto keeps
    one on a GPU where it takes at most a quarter of the memory that is left. Rollouts are the same with it and without."""
    packed_decoder: Literal["auto", "on", "off"] = "auto"
    """Whether the student's decoder learns from rows that are laid end to end, without padding: auto does so on a GPU that computes in
    bfloat16, where attention is one call for all rows; elsewhere it is a call for each. Losses are the same but for rounding."""
    shard_group_size: int = 0
    """Processes that share one copy of the weights, each such group holding a whole copy (hybrid sharding); 0 is all of them."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained, separated by commas, by the names that the student's model family gives them; a name that it does not
    have is answered with those that it has."""
    lora_rank: int = 0
    """Train adapters of this rank beside the decoder's projections instead of the weights; models are written with them merged in; 0 trains
    the weights."""
    lora_alpha: float = 32.0
    """Adapters are scaled by lora_alpha / lora_rank; above 0."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations: less memory, a third more computation."""
    distributed_timeout: float = 1800.0
    """Seconds that processes wait for one another before the run fails."""
    per_device_eval_batch_size: int = 40
    """Utterances decoded together when WER is measured."""
    dataloader_num_workers: int = 2
    """Processes that decode audio and extract features ahead of the step; 0 does it in the step."""
    dataloader_prefetch_factor: int = 2
    """Batches prepared ahead for each process."""
    on_bad_audio: str = "fail"
    """What a clip that cannot be read does: fail stops the run at it; skip:<max ratio>, such as skip:0.01, passes over it and logs it, and
    stops the run when more than that share is bad."""
    feature_cache_mb: int = 0
    """Memory in MiB for features of clips seen before, half for training and half for evaluation; for sets passed over many times."""
    calibrate_only: bool = False
    """End after the preflight, with a summary on standard output."""
    calibration_batches: int = 1
    """Micro-batches that the preflight looks at before the first step, without learning from them: no number or no position that counts
    stops the run; 0 skips it."""
    gates: Literal["strict", "warn", "off"] = "strict"
    """What is done about a start that cannot work and about rollouts that run away in stage opd: strict stops the run, with exit code 1 and
    the cause; warn says it and goes on; off does not look."""
    gate_unfinished: float = 0.05
    """Largest share of rollouts that do not end within asr_opd_max_new_tokens, at the start and over gate_window steps, besides the share
    of references that are longer than that; 0 sets no limit."""
    gate_window: int = 20
    """Logged steps whose unfinished rollouts are judged together."""
    gate_overlap: float = 0.25
    """Smallest share of the two top-k lists that student and teacher have in common at the start of stage opd; 0 sets no limit."""
    gate_dev_wer: float = 40.0
    """Largest WER in percent at the start of stage opd, where eval_data is given; measured on a sample of it unless eval_at_start measures
    all; 0 sets no limit."""
    max_steps: int = 0
    """Optimizer steps; 0 derives them from total_epochs."""
    total_epochs: int = 1
    """Passes over the training rows, when max_steps is 0."""
    learning_rate: float = 1e-6
    """Peak learning rate of AdamW; stage ctc_head takes 0.002 where none is given."""
    lr_scheduler_type: Literal["constant", "cosine", "wsd"] = "constant"
    """Shape of the learning rate after warm-up; wsd stays at the peak and falls linearly at the end."""
    wsd_decay_share: float = 0.2
    """Share of all steps over which wsd falls."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = 0.1
    """Where cosine and wsd end, as a share of learning_rate."""
    weight_decay: float = 0.005
    """Decoupled weight decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema_decay: float = 0.0
    """Keep a running average of the weights with this decay a step and export it as the model ema too; 0 keeps none."""
    max_skipped_steps: int = 10
    """Stop the run after this many steps in a row whose loss or gradient was not finite (each is skipped and counted)."""
    seed: int = 1
    """Seed of the data order, of sampled rollouts and of new layers."""
    opd_top_k: int = 32
    """How many of each model's best ids enter the union."""
    opd_temperature: float = 1.0
    """Softmax temperature of both distributions in the loss."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """What stage opd makes small at each position: forward_kl is KL(teacher‖student), reverse_kl KL(student‖teacher), jsd a mean of both
    ones' divergences from their mixture."""
    jsd_beta: float = 0.5
    """Weight of the teacher in the mixture of jsd, and of its divergence from it; between 0 and 1."""
    support: Literal["union", "teacher", "student", "intersection", "full"] = "union"
    """Ids on which both distributions are compared, each renormalised on them: those of either top-k list, of the teacher's, of the
    student's, of both, or all that may be produced. full needs a teacher of the student's vocabulary in this process, and one product of
    each model's states with its whole head."""
    tail_bucket: bool = False
    """Renormalise nothing, and let one more slot stand for all ids outside the support; it needs the same product of the student."""
    opd_objective: Literal["divergence", "policy_gradient", "fixed_advantage"] = "divergence"
    """divergence: what the flags above choose; policy_gradient: KL(student‖teacher) estimated from the produced tokens alone, which must be
    drawn at temperature 1; fixed_advantage: the same with −1 for every token's advantage, a control that learns nothing of the teacher."""
    control_variate: bool = True
    """Take from each advantage of policy_gradient what it is on average, as far as both top-k lists tell: less noise, the same mean."""
    empty_rollout: Literal["eos", "reference", "skip"] = "eos"
    """What stage opd learns from a rollout of nothing but the end token: eos: that position, like any other; reference: the row's text, by
    cross-entropy; skip: nothing. Rows without a text are skipped by reference too."""
    loop_guard: bool = False
    """Leave positions out of the loss past the length at which a rollout has gone into a loop."""
    length_guard: float = 0.0
    """Leave positions out of the loss past so many times the length of the row's text, in ids; 0 leaves none out, and rows without a text
    are not judged."""
    end_weight: float = 1.0
    """How much the position of a rollout's end token weighs in the loss of stage opd and in its mean; every other weighs 1."""
    position_decay: float = 1.0
    """Each position of a rollout weighs so many times the one before it; 1 weighs all alike."""
    asr_opd_max_new_tokens: int = 256
    """Longest transcript that student or teacher produces, the end token included."""
    rollouts_per_prompt: int = 1
    """Student transcripts of each utterance in a step."""
    rollout_temperature: float = 0.0
    """0 takes the best token; above 0 tokens are drawn at this temperature."""
    rollout_top_p: float = 1.0
    """Draw only from the smallest set of tokens with this probability."""
    rollout_top_k: int = 0
    """Draw only from this many best tokens; 0 draws from all."""
    ctc_weight: float = 0.0
    """Weight of a CTC term on the adapter's output in stage sft; its head is kept for resuming and never exported."""
    channel: str | None = None
    """Which channel is heard in rows that do not say it: a number from 0, several with commas whose average is heard, or average; the
    average of all by default."""
    audio_track: int | None = None
    """Which audio track of a container such as mp4 is heard in rows that do not say it, from 0; the first by default."""
    on_truncated: OnTruncated = "warn"
    """What becomes of an Ogg file that ends on a page's boundary without the mark of its end, as some encoders leave it and as a broken
    download may: warn reads it and says so, fail refuses it. Every other truncated recording is refused."""
    max_audio_seconds: float = 30.0
    """Longer audio is an error, never cut."""
    eval_freq: int = 0
    """Measure WER every so many steps; 0 measures at the end only."""
    eval_at_start: bool = False
    """Measure WER before the first step too."""
    save_freq: int = -1
    """Write a checkpoint that can be resumed every so many steps; -1 writes one at the end only."""
    max_ckpt_to_keep: int = 3
    """Older checkpoints are removed after a new one is complete, all but that of the lowest WER; the best and the last model are kept
    apart."""
    async_save: bool = False
    """Write checkpoints in the background, from a copy in main memory, while training goes on."""
    resume_from_checkpoint: str = ""
    """A checkpoint folder to go on from, or latest or auto (the newest in output_dir; auto starts anew where there is none)."""
    allow_changed: tuple[str, ...] = ()
    """Contents that may differ from those that the run began with, separated by commas: rows, student_model, teacher_model. A resume
    refuses them otherwise, and says what differs; with other rows some may come twice in the epoch and some not at all."""
    verify_checkpoints: Literal["full", "sizes"] = "full"
    """What a resume checks of a checkpoint: full reads every file beside the loading of the models and compares its checksum; sizes looks
    at sizes and headers."""
    log_freq: int = 1
    """Put the step's JSON line on standard output every so many steps; metrics.jsonl has them all. Several processes measure in full only
    those steps and the ones before an evaluation or a save."""
    log_json: bool | None = None
    """Whether JSON lines go to standard output; by default where that is no terminal, unless --quiet is given."""
    tensorboard: bool = False
    """Write the numbers of the log into output_dir/tensorboard too."""
    profile_steps: str = ""
    """Steps to profile, first:last such as 5:7: each process writes a trace into output_dir/profile, to be opened with Perfetto."""
    model_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of forward and backward; master weights and optimizer state are float32 always; auto is bfloat16 on a GPU."""
    student_attn_implementation: Attention = "sdpa"
    """Attention of the student; flash_attention_2 is refused with the reason, since sdpa takes PyTorch's own flash kernels."""
    teacher_attn_implementation: Attention = "sdpa"
    """Attention of the teacher; as with the student's."""
    device: str = "auto"
    """cuda (one GPU of several: cuda:1), cpu or auto."""
    num_threads: int = 0
    """CPU threads of the tensor library; 0 leaves its default."""
    deterministic: bool = False
    """Compute the same bits in every run of the same command on the same machine, resumed or not, on a GPU too, where some operations are
    then slower; a CPU does so anyway."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name}: must be a finite number, got {value}")
        for name in ("student_attn_implementation", "teacher_attn_implementation"):
            if getattr(self, name) == "flash_attention_2":
                raise ValueError(
                    f"--{name} flash_attention_2: masks and positions of training are written for sdpa, which takes PyTorch's own flash "
                    "kernels where they serve and needs no package; leave the flag out"
                )
        if self.packed_decoder == "on" and self.student_attn_implementation != "sdpa":
            raise ValueError(
                f"--packed_decoder on: rows are packed with --student_attn_implementation sdpa, not {self.student_attn_implementation}; "
                "leave one of them out"
            )
        if self.stage in ("opd", "td") and self.teacher_model is None:
            raise ValueError(f"--teacher_model: stage {self.stage} needs a teacher; give its folder")
        if self.stage != "sft" and self.ctc_weight:
            raise ValueError(f"--ctc_weight: the CTC term belongs to stage sft, not to {self.stage}; leave it at 0")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "opd_top_k",
                     "asr_opd_max_new_tokens", "rollouts_per_prompt", "log_freq", "total_epochs", "max_ckpt_to_keep",
                     "max_skipped_steps", "dataloader_prefetch_factor", "gate_window"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "opd_temperature", "max_audio_seconds", "distributed_timeout", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name}: must be above 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "ctc_weight", "rollout_temperature", "rollout_top_k", "eval_freq",
                     "max_steps", "batch_seconds", "dataloader_num_workers", "feature_cache_mb", "num_threads", "micro_batches_per_step",
                     "shard_group_size", "calibration_batches", "lora_rank", "seed", "gate_dev_wer", "length_guard",
                     "end_weight"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name}: must not be negative, got {getattr(self, name)}")
        if not 0 < self.jsd_beta < 1:
            raise ValueError(f"--jsd_beta: must lie between 0 and 1, got {self.jsd_beta}; reverse_kl and forward_kl are its limits")
        if self.jsd_beta != 0.5 and self.divergence != "jsd":
            raise ValueError(f"--jsd_beta {self.jsd_beta}: is a matter of --divergence jsd, and it is {self.divergence}; leave it out")
        if self.opd_objective != "divergence":
            self._check_sampled()
        if not self.control_variate and self.opd_objective != "policy_gradient":
            raise ValueError(
                f"--control_variate: is a matter of --opd_objective policy_gradient, and it is {self.opd_objective}; leave it out"
            )
        if not 0 < self.position_decay <= 1:
            raise ValueError(f"--position_decay: must lie in (0, 1], got {self.position_decay}")
        if 0 < self.length_guard < 1:
            raise ValueError(f"--length_guard: below 1 it would leave rollouts out that are as long as the text, got {self.length_guard}")
        if self.tail_bucket and self.support == "full":
            raise ValueError("--tail_bucket: with --support full no id is left for it; leave one of them out")
        if self.batch_seconds and self.per_device_train_batch_size == 1:
            raise ValueError("--batch_seconds: fills micro-batches of up to --per_device_train_batch_size rows, which is 1; raise that too")
        from arkfast.audio.channels import check_choice
        from arkfast.data.bad_audio import BadAudioLimit
        from arkfast.data.tasks import find_task

        BadAudioLimit(self.on_bad_audio)
        check_choice(self.channel, self.audio_track)
        find_task(self.task)
        if self.stage in ("opd", "td"):
            from arkfast.distill.teachers import check_backend

            check_backend(self.teacher_backend)
        for name in self.allow_changed:
            if name not in CHANGEABLE:
                raise ValueError(f"--allow_changed {name}: a resume can be allowed to change {', '.join(CHANGEABLE)}")
        profiled_steps(self.profile_steps)
        if self.lora_rank and self.freeze:
            raise ValueError(
                f"--freeze {','.join(self.freeze)}: with --lora_rank nothing but the adapters is trained; leave one of them out"
            )
        if self.calibrate_only and not self.calibration_batches:
            raise ValueError("--calibrate_only: there is nothing to look at with --calibration_batches 0; give at least 1")
        if self.seed >= 1 << 63:
            raise ValueError(f"--seed: must be below 2⁶³, got {self.seed}")
        for name in ("opd_temperature", "rollout_temperature"):
            value = getattr(self, name)
            if value and not FLOAT32[0] <= value <= FLOAT32[1]:
                raise ValueError(f"--{name}: must lie in [{FLOAT32[0]:.3g}, {FLOAT32[1]:.3g}], the range of scores, got {value}")
        for name, most, what in (("distributed_timeout", LONGEST_WAIT, "seconds, a year"), ("num_threads", MOST_THREADS, "threads")):
            if getattr(self, name) > most:
                raise ValueError(f"--{name}: must be at most {most} {what}, got {getattr(self, name)}")
        for name in ("ema_decay", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name}: must lie in [0, 1), got {getattr(self, name)}")
        for name in ("min_lr_ratio", "gate_unfinished", "gate_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}: must lie in [0, 1], got {getattr(self, name)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got '{self.device}'")
        if not 0 < self.wsd_decay_share <= 1:
            raise ValueError(f"--wsd_decay_share: must lie in (0, 1], got {self.wsd_decay_share}")
        if not 0 < self.rollout_top_p <= 1:
            raise ValueError(f"--rollout_top_p: must lie in (0, 1], got {self.rollout_top_p}")
        if self.rollouts_per_prompt > 1 and self.rollout_temperature == 0:
            raise ValueError("--rollouts_per_prompt: greedy rollouts are all alike; give --rollout_temperature above 0 or leave it at 1")
        if self.eval_freq and self.eval_data is None:
            raise ValueError("--eval_freq: there is nothing to measure on; give --eval_data")

    def _check_sampled(self) -> None:
        """Raise ValueError unless tokens are drawn from the student's distribution and nothing else is asked of the loss."""
        if (self.rollout_temperature, self.rollout_top_p, self.rollout_top_k, self.opd_temperature) != (1.0, 1.0, 0, 1.0):
            raise ValueError(
                f"--opd_objective {self.opd_objective}: its mean is right for tokens of the student's own distribution alone; give "
                "--rollout_temperature 1, and leave --rollout_top_p, --rollout_top_k and --opd_temperature out"
            )
        if (self.divergence, self.support, self.tail_bucket) != ("forward_kl", "union", False):
            raise ValueError(
                f"--opd_objective {self.opd_objective}: is the reverse divergence over all ids; leave --divergence, --support and "
                "--tail_bucket out"
            )


def profiled_steps(text: str) -> tuple[int, int] | None:
    """First and last step of ``--profile_steps``; None where it is empty.

    Raises:
        ValueError: it is not two ascending steps from 1.
    """
    if not text:
        return None
    first, _, last = text.partition(":")
    if first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise ValueError(f"--profile_steps: expected first:last, two ascending steps such as 5:7, got '{text}'")
