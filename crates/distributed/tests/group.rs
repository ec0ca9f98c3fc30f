//! Groups of threads: what comes out, in which order, and what happens when ranks do not go together.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use occlude_distributed::{Collective, Error, InProcess, Result, SingleProcess};
use std::thread;

/// What each of `size` ranks returns, by rank.
fn ranks<T: Send>(size: usize, run: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let threads = InProcess::group(size).into_iter().map(|rank| scope.spawn(move || run(rank)));
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn numbers<const N: usize>(values: [f32; N]) -> Tensor {
    Tensor::new(values.as_slice(), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec1().unwrap()
}

/// Whole numbers that differ from rank to rank.
fn own(rank: usize) -> Tensor {
    numbers([rank as f32 + 1.0, 10.0 * rank as f32])
}

#[test]
fn every_rank_gets_the_same_of_each_operation() {
    for size in [1, 2, 3] {
        let results = ranks(size, |rank| {
            assert_eq!(rank.size(), size);
            let own = own(rank.rank());
            rank.barrier().unwrap();
            let gathered: Vec<Vec<f32>> = rank.all_gather(&own).unwrap().iter().map(values).collect();
            let mean = values(&rank.all_reduce_mean(&own).unwrap());
            (values(&rank.all_reduce(&own).unwrap()), mean, gathered, values(&rank.broadcast(&own, size - 1).unwrap()))
        });
        let all: Vec<Vec<f32>> = (0..size).map(|rank| values(&own(rank))).collect();
        let sum: Vec<f32> = (0..2).map(|column| all.iter().map(|row| row[column]).sum()).collect();
        let mean = sum.iter().map(|sum| sum / size as f32).collect();
        let expected = (sum, mean, all.clone(), all[size - 1].clone());
        assert!(results.iter().all(|result| *result == expected), "{size} ranks: {results:?}");
    }
}

#[test]
fn a_process_alone_is_a_group_of_one() {
    let alone = SingleProcess;
    let own = own(4);
    for result in [alone.all_reduce(&own), alone.all_reduce_mean(&own), alone.broadcast(&own, 0)] {
        assert_eq!(values(&result.unwrap()), values(&own));
    }
    assert_eq!((alone.rank(), alone.size(), alone.all_gather(&own).unwrap().len()), (0, 1, 1));
    alone.barrier().unwrap();
    assert_eq!(alone.broadcast(&own, 1).unwrap_err().to_string(), "broadcast from rank 1: the group has ranks 0 to 0");
}

#[test]
fn sums_do_not_depend_on_who_comes_first() {
    // In f32 the small numbers would be lost one after the other, and only in one of the two orders.
    let of_rank = |rank: usize| numbers([[1.0, 1e-7, 1e-7, -1.0][rank], 0.1 * rank as f32]);
    let run = |late: usize| {
        ranks(4, |rank| {
            if rank.rank() == late {
                thread::sleep(std::time::Duration::from_millis(5));
            }
            values(&rank.all_reduce(&of_rank(rank.rank())).unwrap())
        })
    };
    let first = run(0);
    assert!((first[0][0] - 2e-7).abs() < 1e-13, "{first:?}");
    for late in 1..4 {
        assert_eq!(run(late), first);
    }
    assert!(first.iter().all(|sum| *sum == first[0]));
}

#[test]
fn every_dtype_keeps_its_own() {
    for dtype in [DType::U32, DType::I64, DType::BF16, DType::F32, DType::F64] {
        let sums = ranks(2, |rank| {
            let own = own(rank.rank()).to_dtype(dtype).unwrap();
            let sum = rank.all_reduce(&own).unwrap();
            (sum.dtype(), values(&sum.to_dtype(DType::F32).unwrap()), rank.all_reduce_mean(&own).is_ok())
        });
        assert!(sums.iter().all(|sum| *sum == (dtype, vec![3.0, 10.0], dtype.is_float())), "{dtype:?}: {sums:?}");
    }
    let refused = SingleProcess.all_reduce_mean(&Tensor::new(1_i64, &Device::Cpu).unwrap()).unwrap_err();
    assert_eq!(refused.to_string(), "all_reduce_mean: expected floats, got I64");
}

#[test]
fn results_are_constants_in_memory_of_their_own() {
    ranks(2, |rank| {
        let weight = Var::from_tensor(&numbers([1.0, 2.0])).unwrap();
        let results = [
            rank.broadcast(&weight, 0).unwrap(),
            rank.all_reduce_mean(&weight).unwrap(),
            rank.all_gather(&weight).unwrap().remove(rank.rank()),
        ];
        weight.set(&numbers([7.0, 7.0])).unwrap();
        for result in results {
            assert!(!result.is_variable() && !result.track_op());
            assert_eq!(values(&result), [1.0, 2.0]);
        }
    });
}

#[test]
fn a_tensor_with_gaps_is_summed_as_it_reads() {
    let sums = ranks(2, |rank| {
        let turned = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap();
        rank.all_reduce(&turned).unwrap().to_vec2::<f32>().unwrap()
    });
    assert_eq!(sums, [[[2.0, 6.0], [4.0, 8.0]], [[2.0, 6.0], [4.0, 8.0]]]);
}

#[test]
fn ranks_that_disagree_are_named_with_their_calls_and_can_go_on() {
    type Run = fn(&InProcess) -> Result<()>;
    let short: Run = |rank| rank.all_reduce(&numbers([1.0])).map(drop);
    let long: Run = |rank| rank.all_reduce(&numbers([1.0, 2.0])).map(drop);
    let wide: Run = |rank| rank.all_reduce(&Tensor::new(&[1.0_f64], &Device::Cpu).unwrap()).map(drop);
    let gather: Run = |rank| rank.all_gather(&numbers([1.0])).map(drop);
    let first: Run = |rank| rank.broadcast(&numbers([1.0]), 0).map(drop);
    let second: Run = |rank| rank.broadcast(&numbers([1.0]), 1).map(drop);
    let barrier: Run = |rank| rank.barrier();
    for (odd, said) in [
        (long, "all_reduce of F32 [2]"),
        (wide, "all_reduce of F64 [1]"),
        (gather, "all_gather of F32 [1]"),
        (first, "broadcast from rank 0 of F32 [1]"),
        (barrier, "barrier"),
    ] {
        let messages = ranks(3, |rank| {
            let run = if rank.rank() == 2 { odd } else { short };
            let error = run(&rank).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            rank.barrier().unwrap();
            error.to_string()
        });
        let expected = format!("ranks disagree: rank 0 calls all_reduce of F32 [1], rank 2 calls {said}");
        assert!(messages.iter().all(|message| *message == expected), "{messages:?}");
    }
    let roots = ranks(2, |rank| [first, second][rank.rank()](&rank).unwrap_err().to_string());
    assert!(roots[0].contains("from rank 0") && roots[0].contains("from rank 1"), "{roots:?}");
    let outside = ranks(2, |rank| rank.broadcast(&numbers([1.0]), 2).unwrap_err().to_string());
    assert_eq!(outside, ["broadcast from rank 2: the group has ranks 0 to 1"; 2]);
}

#[test]
fn a_rank_that_leaves_is_an_error_for_the_others_and_not_a_wait() {
    let results = ranks(3, |rank| {
        let before = rank.all_reduce(&own(rank.rank())).map(|sum| values(&sum));
        if rank.rank() == 1 {
            return (before.unwrap(), None, None);
        }
        let lost = rank.all_reduce(&own(rank.rank())).unwrap_err();
        (before.unwrap(), Some(lost.to_string()), Some(rank.barrier().unwrap_err().to_string()))
    });
    assert!(results.iter().all(|(before, ..)| *before == [6.0, 30.0]), "what was complete is handed over");
    for rank in [0, 2] {
        let (_, lost, again) = &results[rank];
        // Whoever notices first leaves too; the first to leave is named.
        assert_eq!(lost.as_deref(), Some("all_reduce of F32 [2]: rank 1 of 3 has left the group"));
        assert_eq!(again.as_deref(), Some("barrier: rank 1 of 3 has left the group"));
    }
}

#[test]
fn a_rank_that_panics_has_left() {
    let mut group = InProcess::group(2);
    let (other, own) = (group.pop().unwrap(), group.pop().unwrap());
    let panicked = thread::spawn(move || {
        let _held = other;
        std::panic::resume_unwind(Box::new("as a step might"));
    });
    let error = own.barrier().unwrap_err();
    assert!(matches!(error, Error::Lost { rank: 1, size: 2, .. }), "{error}");
    assert!(panicked.join().is_err());
}

#[test]
fn many_rounds_keep_ranks_in_step() {
    let sums: Vec<f32> = ranks(3, |rank| {
        (0..500).map(|round| values(&rank.all_reduce(&numbers([(round * (rank.rank() + 1)) as f32])).unwrap())[0]).sum()
    });
    let expected: f32 = (0..500).map(|round| (6 * round) as f32).sum();
    assert_eq!(sums, [expected; 3]);
}
