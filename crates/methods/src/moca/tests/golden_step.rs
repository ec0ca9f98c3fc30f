//! Two recorded steps: every intermediate value, gradients, moments, updated parameters.

use super::{Golden, choice, context, rounds, single, views};
use crate::Method;
use crate::moca::{Goal, Moca, RoundLosses};
use candle_core::{DType, Tensor};
use occlude_golden::{Tensors, assert_close, set, with_split_attention};
use occlude_kernels::{Gradients, gather_rows};
use occlude_losses::kl_divergence;
use occlude_masking::Round;
use occlude_optim::Optimizer;
use occlude_vit::DropPath;

const ACTIVATIONS: f64 = 3e-5;
const LOSSES: f64 = 1e-5;
pub(super) const GRADIENTS: f64 = 5e-5;
pub(super) const STATE: f64 = 1e-5;
/// Shares of the learning rate by which an updated entry, and all but a thousandth of them, may be off.
const UPDATES: (f64, f64) = (0.2, 0.01);

/// Its gradient is zero but for rounding, which Adam turns into a step of any direction.
fn is_key_bias(name: &str) -> bool {
    name.ends_with(".attn.k.bias")
}

/// Compares `got` where `name` is recorded.
pub(super) fn close(record: &Tensors, name: &str, got: &Tensor, bound: f64) {
    if let Some(expected) = record.get(name) {
        assert_close(name, got, expected, bound);
    }
}

/// Targets of both views, and the tokens they come from.
fn goal(moca: &Moca, inputs: &Tensors) -> (Tensor, Goal) {
    let tokens = moca.tokens(&Tensor::cat(&views(inputs), 0).unwrap()).unwrap();
    let target = moca.settings.local.as_ref().map(|local| local.target);
    let goal = Goal::new(&moca.codebook, &tokens, target).unwrap();
    (tokens, goal)
}

/// Teacher, assignments, targets, temperature and, where they were chosen, new words against the record.
pub(super) fn check_targets(moca: &Moca, inputs: &Tensors, record: &Tensors) {
    for (view, name) in views(inputs).iter().zip(["teacher_tokens_x1", "teacher_tokens_x2"]) {
        let seen = moca.teacher().forward(view, None, &[], &mut DropPath::off()).unwrap();
        close(record, name, &seen.tokens, ACTIVATIONS);
    }
    let (tokens, goal) = goal(moca, inputs);
    let (rows, patches, _) = tokens.dims3().unwrap();
    let batch = rows / 2;
    for (view, other) in [(0, 1), (1, 0)] {
        let of = |name: &str| format!("{name}{}", view + 1);
        let codes = goal.patches.narrow(0, view * batch * patches, batch * patches).unwrap();
        close(record, &of("codes_x"), &codes.reshape((batch, patches, ())).unwrap(), ACTIVATIONS);
        close(record, &of("bow_x"), &goal.images.narrow(0, other * batch, batch).unwrap(), ACTIVATIONS);
        close(record, &of("msd_v"), &single(goal.distances[view]), ACTIVATIONS);
        close(record, &of("inv_temp_used_v"), &single(moca.codebook.inverse_temperature().unwrap()), STATE);
    }
    close(record, "codebook_before", &moca.codebook.words().unwrap(), STATE);
    if inputs.contains_key("upd_view") {
        close(record, "new_words", &moca.new_words(&choice(inputs), &tokens).unwrap(), ACTIVATIONS);
    }
}

/// What the student says in every round against the record.
pub(super) fn check_rounds(moca: &Moca, inputs: &Tensors, record: &Tensors) {
    let (_, goal) = goal(moca, inputs);
    let images = Tensor::cat(&views(inputs), 0).unwrap();
    let prototypes = moca.student().prototypes(&moca.codebook.words().unwrap()).unwrap();
    close(record, "prototypes_img", &prototypes.image.prototypes, ACTIVATIONS);
    if let Some(local) = &prototypes.local {
        close(record, "prototypes_loc", &local.prototypes, ACTIVATIONS);
    }
    let tap = moca.settings.local.as_ref().map_or(moca.settings.encoder.depth(), |local| local.intermediate);
    for (round, at) in rounds(moca, inputs).iter().zip(1..) {
        let of = |name: &str| format!("r{at}.{name}");
        let encoder = moca.student().encoder();
        let seen = encoder.forward(&images, Some(&round.visible()), &[tap], &mut DropPath::off()).unwrap();
        close(record, &of("student_last_tokens"), &seen.tokens, ACTIVATIONS);
        close(record, &of("student_intermediate_tokens"), &seen.tapped[0], ACTIVATIONS);
        let said = moca.student().say(&images, round).unwrap();
        close(record, &of("global_embedding"), &said.global, ACTIVATIONS);
        said.patches.iter().for_each(|said| close(record, &of("decoder_features"), said, ACTIVATIONS));
        let RoundLosses { image, local } = moca.student().losses(&said, (&images, round), &goal, &prototypes).unwrap();
        assert_close(&of("loss_img"), &image.unsqueeze(0).unwrap(), &record[&of("loss_img")], LOSSES);
        if let Some(local) = local {
            assert_close(&of("loss_loc"), &local.unsqueeze(0).unwrap(), &record[&of("loss_loc")], LOSSES);
        }
        check_rows(round, &goal, record, at);
    }
}

/// The losses of every row, from the recorded scores: which target belongs to which prediction.
fn check_rows(round: &Round, goal: &Goal, record: &Tensors, at: usize) {
    let targets = [("img", goal.images.clone()), ("loc", gather_rows(&goal.patches, &round.decoded()).unwrap())];
    for (name, targets) in targets {
        let recorded = |what: &str| record.get(&format!("r{at}.{what}"));
        let (Some(logits), Some(expected)) =
            (recorded(&format!("logits_{name}")), recorded(&format!("loss_{name}_rows")))
        else {
            continue;
        };
        let row = |row: usize| {
            let of = |t: &Tensor| t.narrow(0, row, 1).unwrap();
            kl_divergence(&of(logits), &of(&targets), 1.0).unwrap().unsqueeze(0).unwrap()
        };
        let rows: Vec<Tensor> = (0..targets.dims()[0]).map(row).collect();
        let got = Tensor::cat(&rows, 0).unwrap().reshape(expected.dims()).unwrap();
        assert_close(name, &got, expected, ACTIVATIONS);
    }
}

/// Losses of the whole step against the record.
pub(super) fn check_losses(losses: &[(&str, f64)], record: &Tensors) {
    for (ours, theirs) in [("total", "loss_total"), ("image", "loss_img"), ("local", "loss_loc")] {
        let got = losses.iter().find(|(name, _)| *name == ours).map_or(0.0, |(_, loss)| *loss);
        assert_close(theirs, &single(got), &record[theirs], LOSSES);
    }
}

/// Gradients of all names in `expected`; how many there are.
pub(super) fn check_gradients(moca: &Moca, gradients: &Gradients, expected: Tensors) -> usize {
    let expected = with_split_attention(expected);
    for (name, expected) in expected.iter().filter(|(name, _)| !is_key_bias(name)) {
        let tensor = moca.trained.get(name).unwrap_or_else(|| panic!("{name} is not a parameter"));
        let gradient = gradients.get(tensor).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_close(name, gradient, expected, GRADIENTS);
    }
    expected.len()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The state against all of `expected`: trained parameters by how far their update is off, in learning rates; everything
/// else directly.
pub(super) fn check_state(moca: &Moca, expected: Tensors, lrs: &[(&str, f64)]) {
    let (state, groups) = (moca.state(), moca.groups());
    let lr_of = |name: &str| {
        let group = groups.iter().find(|group| group.params.iter().any(|param| param.name == name))?;
        lrs.iter().find(|(known, _)| *known == group.name).map(|(_, lr)| *lr)
    };
    let mut off = Vec::new();
    for (name, expected) in with_split_attention(expected) {
        let got = state.get(&name).unwrap_or_else(|| panic!("{name} is not in the state"));
        let Some(lr) = lr_of(&name) else {
            assert_eq!(got.dtype(), expected.dtype(), "{name}");
            assert_close(&name, got, &expected, STATE);
            continue;
        };
        assert_eq!(got.dims(), expected.dims(), "{name}");
        let most = if is_key_bias(&name) { 2.0 } else { UPDATES.0 };
        for (a, b) in values(got).into_iter().zip(values(&expected)) {
            let difference = (a - b).abs() / lr;
            assert!(difference <= most, "{name}: {a} against {b}, {difference:.3} learning rates apart");
            off.extend((!is_key_bias(&name)).then_some(difference));
        }
    }
    off.sort_by(f64::total_cmp);
    let common = off[off.len() * 999 / 1000];
    assert!(common <= UPDATES.1, "one entry in a thousand is more than {common:.4} learning rates off");
}

fn check_schedules(moca: &Moca, step: u64, inputs: &Tensors) {
    let recipe = &moca.settings.recipe;
    for (name, got) in [
        ("sched_lr", &recipe.lr),
        ("sched_lr_wgen", &recipe.generator_lr),
        ("sched_weight_decay", &recipe.weight_decay),
        ("sched_weight_decay_wgen", &recipe.generator_weight_decay),
        ("sched_teacher_momentum", &recipe.momentum),
    ] {
        assert_close(name, &single(got.at(step)), &inputs[name], 1e-12);
    }
}

fn check_moments(optimizer: &Optimizer, adam: &Tensors) {
    let state = optimizer.state();
    for (name, expected) in adam {
        let (kind, parameter) = match name.strip_suffix(".exp_avg") {
            Some(parameter) => (".m.", parameter),
            None => (".v.", name.strip_suffix(".exp_avg_sq").unwrap()),
        };
        let ours = state.iter().find(|(ours, _)| ours.ends_with(&format!("{kind}{parameter}")));
        assert_close(name, ours.unwrap_or_else(|| panic!("{name} is not kept")).1, expected, GRADIENTS);
    }
}

/// Runs the recorded steps, each against its record and the state after it.
#[test]
fn golden_moca_steps() {
    let set = set("moca");
    let files = ["step1_record", "step1_grads", "state1", "step1_adam", "step2_record", "state2"];
    let [Some(record1), Some(grads), Some(state1), Some(adam), Some(record2), Some(state2)] =
        files.map(|file| set.tensors(file))
    else {
        return;
    };
    let Some(golden) = Golden::find() else { return };
    let mut moca = golden.moca(&golden.moca_config(&golden.settings), &golden.state);
    assert_eq!(moca.state().len(), golden.state.len(), "every tensor of the reference has its place");
    let clip = golden.settings["clip_grad"].as_f64().unwrap();
    let mut optimizer = Optimizer::new(moca.groups(), Some(clip)).unwrap();
    let steps = [(&golden.inputs, &record1, state1), (&record2, &record2, state2)];
    for ((inputs, record, after), number) in steps.into_iter().zip(1..) {
        let ctx = context(golden.step(number));
        check_schedules(&moca, ctx.step, inputs);
        moca.before_update(&ctx).unwrap();
        check_targets(&moca, inputs, record);
        check_rounds(&moca, inputs, record);
        let rounds = rounds(&moca, inputs);
        let output = moca.step_with(views(inputs), &rounds, Some(&choice(inputs))).unwrap();
        check_losses(&output.losses, record);
        if number == 1 {
            let compared = check_gradients(&moca, &output.gradients, grads.clone());
            assert_eq!(compared, output.gradients.len(), "every gradient has its reference");
        }
        let report = optimizer.step(&output.gradients, ctx.step).unwrap();
        let norm = report.grad_norm.unwrap();
        assert_close("grad_total_norm", &single(norm), &record["grad_total_norm"], GRADIENTS);
        let coefficient = (clip / (norm + 1e-6)).min(1.0);
        assert_close("grad_clip_coef", &single(coefficient), &record["grad_clip_coef"], GRADIENTS);
        moca.after_step(&ctx).unwrap();
        check_state(&moca, after, &report.lrs);
        if number == 1 {
            check_moments(&optimizer, &adam);
        }
    }
}
