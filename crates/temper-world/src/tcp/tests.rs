//! Ranks that are threads of this process, joined by TCP.

use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::meeting::Message;
use super::*;
use crate::World;
use crate::frame::{receive_by, send};
use crate::threads::tests::{ranks_agree, tensor, turns_do_not_mix, vec};

fn place(rank: usize, size: usize) -> Place {
    Place { rank, size, local_rank: rank, local_size: size, meeting: None, launcher: "threads" }
}

fn in_threads<R: Send>(size: usize, run: impl Fn(World) -> R + Sync) -> Vec<R> {
    let meeting = Address::local().unwrap();
    thread::scope(|scope| {
        let rank = |rank| {
            let (meeting, run) = (&meeting, &run);
            scope.spawn(move || {
                let place = place(rank, size);
                let tcp = Tcp::join(&place, meeting, "a").unwrap();
                let world = World::of(place, Rc::new(tcp));
                let result = run(world.clone());
                // Who sums nothing waits for nobody.
                world.barrier().unwrap();
                result
            })
        };
        // Rank 0 comes last.
        let ranks: Vec<_> = (0..size).rev().map(rank).collect();
        ranks.into_iter().rev().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn ranks_do_together_what_they_say() {
    ranks_agree(|run| in_threads(3, run));
}

#[test]
fn many_turns_do_not_mix() {
    turns_do_not_mix(|run| in_threads(4, run));
}

/// Whatever the sizes, all ranks get the same bits, and those of one order of sums.
#[test]
fn sums_are_the_same_everywhere() {
    let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 1009) as f32 * 0.37 - 150.0;
    for size in [2, 3, 5] {
        for count in [0, 1, 4, 7, 300_001] {
            let parts: Vec<usize> = (0..size).map(|rank| if rank == 1 { count } else { 0 }).collect();
            let found = in_threads(size, |world| {
                let own: Vec<f32> = (0..count).map(|i| value(world.rank(), i)).collect();
                let sums = vec(world.all_reduce(tensor(&own)).unwrap());
                let part = vec(world.reduce_scatter(tensor(&own), &parts).unwrap());
                let own = if world.rank() == 1 { &own[..] } else { &[] };
                (sums, part, vec(world.all_gather(tensor(own), &parts).unwrap()))
            });
            let [sums, of_one] = [0, 1].map(|rank| &found[rank].0);
            let expected: Vec<f64> = (0..count).map(|i| (0..size).map(|r| f64::from(value(r, i))).sum()).collect();
            assert_eq!(sums, of_one);
            assert!(sums.len() == count && sums.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
            for (rank, (all, part, gathered)) in found.iter().enumerate() {
                assert_eq!((all, part.len()), (sums, parts[rank]));
                assert!(part.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
                assert!(gathered.len() == count && (0..count).all(|i| gathered[i] == value(1, i)));
            }
        }
    }
}

/// Who holds the port, who does not belong, and who has come before.
#[test]
fn only_those_of_one_run_meet() {
    let meeting = Address::local().unwrap();
    let join_for = |run, rank, size| Tcp::join(&place(rank, size), &meeting, run);
    let join = &|rank, size| join_for("a", rank, size);
    let said = |joined: Result<Tcp, Error>| joined.err().unwrap().to_string();
    let call = || loop {
        match TcpStream::connect((&*meeting.host, meeting.port)) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    let (waiting, seated, mute) = (OnceLock::new(), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let lead = scope.spawn(|| join(0, 3));
        // Many say nothing, one nonsense, one comes and goes.
        let (_silent, mut loud): (Vec<_>, _) = ((0..30).map(|_| call()).collect(), call());
        loud.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let here = |stream: &TcpStream, rank| {
            let addresses = vec![([127, 0, 0, 1], 1).into()];
            send(&Message::Here { run: "a".into(), rank, size: 3, addresses }, stream).unwrap();
        };
        here(&call(), 1);
        let waits = waiting.get_or_init(call);
        here(waits, 1);
        let still = scope.spawn(|| {
            loop {
                assert!(matches!(receive_by(waits, Instant::now() + Duration::from_secs(60)), Ok(Message::Roll)));
                if mute.load(Relaxed) {
                    return;
                }
                send(&Message::Still, waits).unwrap();
                seated.store(true, Relaxed);
            }
        });
        while !seated.load(Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        let refused = said(join(1, 3));
        assert!(refused.contains("there is a rank 1 already; two runs need two values of MASTER_PORT"), "{refused}");
        assert!(said(join(1, 2)).contains("this is rank 1 of 2 for `a`, and rank 0 waits for 3 for `a`"));
        assert!(said(join_for("b", 1, 3)).contains("this is rank 1 of 3 for `b`, and rank 0 waits for 3 for `a`"));
        let taken = said(join(0, 3));
        assert!(taken.contains(&format!("port {} of this machine is taken", meeting.port)), "{taken}");
        // One that no longer answers, be it stopped or without power, makes room for another.
        mute.store(true, Relaxed);
        still.join().unwrap();
        // Where a rank does not know what it is to do, rank 0 will say it.
        let others = [("a", 1), ("", 2)].map(|(run, rank)| scope.spawn(move || join_for(run, rank, 3)));
        others.into_iter().chain([lead]).for_each(|rank| drop(rank.join().unwrap().unwrap()));
    });
}
