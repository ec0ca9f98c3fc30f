//! Several ranks that train one model, as threads of this process.

use crate::common::{Line, Noise, Stopper, train, trainer, trainer_of_micros};
use candle_core::{DType, Device, Tensor};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_distributed::{Collective, InProcess};
use occlude_kernels::{StateDict, assign};
use occlude_methods::Method;
use occlude_trainer::{End, Error, Outcome, Stop, Trainer};
use serde_json::Value;
use std::thread;

/// What a rank ended with: its outcome, the state of its method.
type Ended = (occlude_trainer::Result<Outcome>, StateDict);

/// Trains on two ranks in one run directory. `change` is given each rank's number, trainer, method and images.
fn two_ranks(run: &RunDir, change: impl Fn(usize, &mut Trainer<'_>, &mut Line, &mut Noise) + Sync) -> [Ended; 2] {
    let change = &change;
    let rank = |rank: InProcess| {
        let number = rank.rank();
        let (mut trainer, mut method) = (trainer(run), Line::new());
        method.lead = 0.0;
        let mut noise = Noise { others: 1, ..Noise::default() };
        change(number, &mut trainer, &mut method, &mut noise);
        trainer.collective = Box::new(rank);
        let outcome = trainer.run(&mut method, |first| Ok(Noise { step: 2 * first + number as u64, ..noise }));
        (outcome, method.state())
    };
    thread::scope(|scope| {
        let threads = InProcess::group(2).into_iter().map(|member| scope.spawn(move || rank(member)));
        let ended: Vec<Ended> = threads.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect();
        ended.try_into().unwrap()
    })
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_same(one: &StateDict, other: &StateDict, prefix: &str) {
    let of = |state: &StateDict| {
        let named = state.iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(name, tensor)| (name.clone(), values(tensor))).collect::<Vec<_>>()
    };
    assert!(!of(one).is_empty());
    assert_eq!(of(one), of(other));
}

/// Rows of metrics without the epoch, which counts the images of one rank.
fn rows(run: &RunDir) -> Vec<Value> {
    let text = std::fs::read_to_string(run.metrics_file()).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|mut row| {
        row.as_object_mut().unwrap().remove("epoch");
        row
    })
    .collect()
}

#[test]
fn two_ranks_take_the_steps_of_one_with_two_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let [(first, one), (second, other)] = two_ranks(&run, |rank, _, method, _| {
        if rank == 1 {
            // Every rank begins as rank 0 does.
            let weight = method.state()["student.w"].clone();
            assign(&weight, &weight.zeros_like().unwrap()).unwrap();
        }
    });
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((first.end, first.step, second.end, second.step), (End::Finished, 20, End::Finished, 20));
    assert!(second.checkpoint.as_os_str().is_empty(), "rank 0 alone saves");
    assert_same(&one, &other, "");

    let folder = tempfile::tempdir().unwrap();
    let alone = RunDir::create(folder.path()).unwrap();
    let mut method = Line::new();
    method.lead = 0.0;
    let outcome = trainer_of_micros(2, &alone).run(&mut method, |step| Ok(Noise { step, ..Noise::default() })).unwrap();
    assert_same(&one, &method.state(), "student");
    let optimizer =
        |outcome: &Outcome| Checkpoint::open(&outcome.checkpoint).unwrap().load("optimizer", &Device::Cpu).unwrap();
    assert_same(&optimizer(&first), &optimizer(&outcome), "");
    // An epoch of one rank counts its own images: the two of them come to its end at other steps.
    let measured = |run: &RunDir| -> Vec<serde_json::Value> {
        rows(run).into_iter().filter(|row| row.get("matrix").is_none()).collect()
    };
    assert_eq!(measured(&run), measured(&alone));
}

#[test]
fn a_wish_to_stop_stops_every_rank_and_all_go_on_from_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let [(outcome, straight), _] = two_ranks(&run, |_, _, _, _| ());
    outcome.unwrap();
    let expected = rows(&run);

    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let wish = Stop::new();
    let ended = two_ranks(&run, |rank, trainer, _, _| match rank {
        // Rank 0 has the sinks: it tells rank 1, whose wish stops both.
        0 => trainer.sinks.push(Box::new(Stopper(7, wish.clone()))),
        _ => trainer.stop = wish.clone(),
    });
    for (outcome, _) in ended {
        let outcome = outcome.unwrap();
        // Rank 1 may have asked for the wishes after step 7 before it was told.
        assert!(outcome.end == End::Interrupted && (7..=8).contains(&outcome.step), "{outcome:?}");
    }
    let ended = two_ranks(&run, |_, _, _, _| ());
    for (outcome, state) in ended {
        let outcome = outcome.unwrap();
        assert!(outcome.end == End::Finished && outcome.resumed.is_some_and(|step| (7..=8).contains(&step)));
        assert_same(&state, &straight, "");
    }
    assert_eq!(rows(&run), expected);

    // Another number of ranks is another run.
    let error = train(trainer(&run)).unwrap_err();
    assert!(error.to_string().contains("ranks (was 2, now not set)"), "{error}");
}

#[test]
fn a_rank_that_fails_ends_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let [(first, _), (second, _)] = two_ranks(&run, |rank, _, _, noise| {
        noise.ends = (rank == 1).then_some(2 * 7 + 1);
    });
    assert!(matches!(second.unwrap_err(), Error::Data(_)));
    let message = first.unwrap_err().to_string();
    assert!(message.contains("rank 1 of 2 has left the group"), "{message}");
    assert!(run.checkpoints_dir().join("step-00000005").exists());

    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let [(first, _), (second, _)] = two_ranks(&run, |rank, _, method, _| {
        method.poisoned = (rank == 1).then_some(2 * 3 + 1);
    });
    let message = second.unwrap_err().to_string();
    assert!(message.starts_with("step 3: the gradient of student.w is not finite"), "{message}");
    assert!(message.contains("A step of several ranks is not stored"), "{message}");
    assert!(first.unwrap_err().to_string().contains("rank 1 of 2 has left the group"));
}
