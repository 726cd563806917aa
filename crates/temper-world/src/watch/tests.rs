//! One watch in a process of its own, which may end, among ranks that these tests play: they say what they like, or nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use super::*;

/// What the process is told to be: `lead OTHERS`, or `follow RANK PORT`.
const ROLE: &str = "TEMPER_WATCH_ROLE";
const TOKEN: u64 = 7;
const SILENCE: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_millis(1000);
/// What takes longer than this has not happened.
const NEVER: Duration = Duration::from_secs(20);

/// No test: the process that the tests start. It does what its standard input says, line by line.
#[test]
fn process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let on_failure: OnFailure = Box::new(|verdict| eprintln!("{verdict}"));
    let watch = match role.split(' ').collect::<Vec<_>>()[..] {
        ["lead", others] => {
            let meeting = Meeting { token: TOKEN, ..Meeting::open(None).unwrap() };
            println!("\nport {}", meeting.callers.addresses().unwrap()[0].port());
            Watch::lead(&meeting, others.parse().unwrap(), on_failure).unwrap()
        }
        ["follow", rank, port] => {
            let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
            Watch::follow(rank.parse().unwrap(), &[address], TOKEN, on_failure).unwrap()
        }
        _ => panic!("{role}"),
    };
    watch.set_limits(Limits { silence: SILENCE, patience: PATIENCE });
    let watch = Arc::new(watch);
    for line in io::stdin().lines() {
        match line.unwrap().split_once(' ').unwrap() {
            ("at", step) => watch.at(step.parse().unwrap()),
            ("wait", _) => {
                let watch = watch.clone();
                thread::spawn(move || watch.waiting::<()>(|| park()));
            }
            ("fail", cause) => watch.fail(cause.into(), 6),
            ("goodbye", _) => watch.goodbye(),
            (other, _) => panic!("{other}"),
        }
    }
    exit(0)
}

/// That process.
struct Watcher(Child);

impl Watcher {
    fn start(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "watch::tests::process", "--nocapture"]).env(ROLE, role);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(pipes.spawn().unwrap())
    }

    /// Rank 0, and the others.
    fn lead(others: usize) -> (Self, Vec<Player>) {
        let mut watcher = Self::start(&format!("lead {others}"));
        let lines = BufReader::new(watcher.0.stdout.take().unwrap()).lines();
        let port = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("port ")?.parse().ok()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // A stranger is not counted.
        let stranger = TcpStream::connect(address).unwrap();
        send(&Frame::Hello { rank: 1, token: TOKEN + 1, whence: "elsewhere".into() }, &stranger).unwrap();
        let join = |rank| {
            let stream = TcpStream::connect(address).unwrap();
            send(&Frame::Hello { rank, token: TOKEN, whence: format!("host {rank}") }, &stream).unwrap();
            Player::new(stream)
        };
        (watcher, (1..=others).map(join).collect())
    }

    /// Another rank, and rank 0.
    fn follow(rank: usize) -> (Self, Player) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let watcher = Self::start(&format!("follow {rank} {}", listener.local_addr().unwrap().port()));
        let (stream, _) = listener.accept().unwrap();
        let hello = receive(&stream).unwrap();
        assert!(matches!(hello, Frame::Hello { rank: found, token: TOKEN, .. } if found == rank), "{hello:?}");
        (watcher, Player::new(stream))
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn signal(&self, number: i32) {
        // SAFETY: `kill` has no conditions; the child has not been waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(self.0.id().try_into().unwrap(), number) }, 0);
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// How it ends by itself: its exit code, and what it says to the user.
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        while self.runs() {
            if started.elapsed() > NEVER {
                self.0.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
        let out = self.0.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    }
}

/// A rank that a test plays: it says what it does ten times a second, once it has been told what that is.
struct Player {
    stream: TcpStream,
    status: Arc<Mutex<Option<Status>>>,
    verdicts: Receiver<Verdict>,
}

impl Player {
    fn new(stream: TcpStream) -> Self {
        let (status, (sender, verdicts)) = (Arc::new(Mutex::new(None)), mpsc::channel());
        let (own, says) = (stream.try_clone().unwrap(), Arc::clone(&status));
        thread::spawn(move || {
            loop {
                let status: Option<Status> = *says.lock().unwrap();
                if status.is_some_and(|status| send(&Frame::Beat(status), &own).is_err()) {
                    return;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let own = stream.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok(frame) = receive(&own) {
                if let Frame::Failed(verdict) = frame {
                    let _ = sender.send(verdict);
                }
            }
        });
        Self { stream, status, verdicts }
    }

    /// At a step, it has begun so many operations, the last of which it is waiting in or not.
    fn says(&self, step: u64, begun: u64, waiting: bool) {
        *self.status.lock().unwrap() = Some(Status { step, begun, waiting, busy: false });
    }

    fn is_busy(&self, step: u64) {
        *self.status.lock().unwrap() = Some(Status { step, begun: 0, waiting: false, busy: true });
    }

    fn falls_silent(&self) {
        *self.status.lock().unwrap() = None;
    }

    fn dies(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    fn sends(&self, frame: Frame) {
        send(&frame, &self.stream).unwrap();
    }

    /// What it is told to end for.
    fn verdict(&self) -> Verdict {
        self.verdicts.recv_timeout(NEVER).unwrap()
    }
}

/// Time in which what was said is heard.
fn a_moment() {
    thread::sleep(Duration::from_millis(300));
}

/// They wait more than they work, so all of them do it at once.
#[test]
fn a_watch_ends_its_rank_for_what_happens_to_others() {
    thread::scope(|scope| {
        for case in [
            who_dies_is_named_to_all,
            who_says_nothing_is_given_up_after_the_silence,
            whom_the_others_wait_for_hangs_after_the_patience_unless_it_is_busy,
            all_who_wait_for_each_other_hang_after_the_patience,
            who_said_goodbye_may_go,
            who_was_stopped_with_all_others_judges_nobody,
            what_happened_on_a_rank_is_said_by_rank_0_alone,
            when_rank_0_is_lost_rank_1_speaks,
            who_is_told_to_end_ends_as_it_is_told,
        ] {
            scope.spawn(case);
        }
    });
}

fn who_dies_is_named_to_all() {
    let (lead, ranks) = Watcher::lead(2);
    ranks.iter().for_each(|rank| rank.says(3, 0, false));
    a_moment();
    ranks[1].dies();
    let verdict = ranks[0].verdict();
    let cause = "it died (host 2): killed, out of memory, or crashed";
    assert_eq!(verdict, Verdict { rank: 2, step: 3, cause: cause.into(), code: WORLD_FAILED });
    assert_eq!(lead.end(), (Some(8), format!("rank 2 at step 3: {cause}\n")));
}

fn who_says_nothing_is_given_up_after_the_silence() {
    let (lead, ranks) = Watcher::lead(2);
    ranks.iter().for_each(|rank| rank.says(0, 0, false));
    a_moment();
    ranks[0].falls_silent();
    let since = Instant::now();
    let verdict = ranks[1].verdict();
    // The last word was up to a tenth of a second ago.
    assert!(since.elapsed() + Duration::from_millis(200) > SILENCE, "{:?}", since.elapsed());
    assert_eq!((verdict.rank, verdict.step, verdict.code), (1, 0, WORLD_FAILED));
    let said =
        "rank 1 before the first step: nothing was heard of it (host 1) for 1.5 s: it is stopped, or its machine";
    let (code, found) = lead.end();
    assert!(code == Some(8) && found.starts_with(said), "{found}");
}

fn whom_the_others_wait_for_hangs_after_the_patience_unless_it_is_busy() {
    let (mut lead, ranks) = Watcher::lead(2);
    lead.tell("at 5");
    lead.tell("wait -");
    ranks[0].says(5, 1, true);
    ranks[1].is_busy(4);
    thread::sleep(2 * PATIENCE);
    assert!(lead.runs(), "{:?}", lead.end());
    let since = Instant::now();
    ranks[1].says(4, 0, false);
    let verdict = ranks[0].verdict();
    assert!(since.elapsed() + Duration::from_millis(600) > PATIENCE, "{:?}", since.elapsed());
    let cause = "it hangs (host 2): the others have waited for it for 1 s";
    assert_eq!(verdict, Verdict { rank: 2, step: 4, cause: cause.into(), code: WORLD_FAILED });
    assert_eq!(lead.end(), (Some(8), format!("rank 2 at step 4: {cause}\n")));
}

fn all_who_wait_for_each_other_hang_after_the_patience() {
    let (mut lead, ranks) = Watcher::lead(1);
    lead.tell("at 5");
    lead.tell("wait -");
    ranks[0].says(5, 1, true);
    let verdict = ranks[0].verdict();
    let cause = "it hangs, as all others do: for 1 s all have waited for each other";
    assert_eq!(verdict, Verdict { rank: 0, step: 5, cause: cause.into(), code: WORLD_FAILED });
    assert_eq!(lead.end(), (Some(8), format!("rank 0 at step 5: {cause}\n")));
}

fn who_said_goodbye_may_go() {
    let (mut lead, ranks) = Watcher::lead(2);
    ranks.iter().for_each(|rank| rank.says(9, 4, false));
    ranks[0].falls_silent();
    ranks[0].sends(Frame::Goodbye);
    ranks[0].dies();
    thread::sleep(SILENCE + BEAT);
    assert!(lead.runs(), "{:?}", lead.end());
    lead.tell("goodbye -");
    a_moment();
    ranks[1].dies();
    a_moment();
    assert!(lead.runs(), "{:?}", lead.end());
    drop(lead.0.stdin.take());
    assert_eq!(lead.end(), (Some(0), String::new()));
}

fn who_was_stopped_with_all_others_judges_nobody() {
    let (mut lead, ranks) = Watcher::lead(2);
    ranks.iter().for_each(|rank| rank.says(1, 0, false));
    a_moment();
    lead.signal(libc::SIGSTOP);
    ranks.iter().for_each(Player::falls_silent);
    thread::sleep(5 * BEAT);
    lead.signal(libc::SIGCONT);
    // It wakes before they say anything.
    a_moment();
    ranks.iter().for_each(|rank| rank.says(1, 0, false));
    thread::sleep(2 * BEAT);
    assert!(lead.runs(), "{:?}", lead.end());
    lead.0.kill().unwrap();
    lead.end();
}

fn what_happened_on_a_rank_is_said_by_rank_0_alone() {
    let (mut rank, lead) = Watcher::follow(1);
    lead.says(2, 0, false);
    rank.tell("at 2");
    rank.tell("fail the loss is not finite");
    let verdict = lead.verdict();
    assert_eq!(verdict, Verdict { rank: 1, step: 2, cause: "the loss is not finite".into(), code: 6 });
    assert_eq!(rank.end(), (Some(6), String::new()));

    let (mut lead, ranks) = Watcher::lead(1);
    ranks[0].says(2, 0, false);
    lead.tell("fail the disk is full");
    assert_eq!(ranks[0].verdict().rank, 0);
    assert_eq!(lead.end(), (Some(6), "rank 0 before the first step: the disk is full\n".into()));
}

fn when_rank_0_is_lost_rank_1_speaks() {
    let ranks = [1, 2].map(Watcher::follow);
    ranks.iter().for_each(|(_, lead)| lead.says(6, 0, false));
    a_moment();
    ranks.iter().for_each(|(_, lead)| lead.dies());
    let [(first, said), (second, nothing)] = ranks.map(|(rank, _)| rank.end());
    assert!(said.starts_with("rank 0 at step 6: it died (127.0.0.1)"), "{said}");
    assert_eq!((first, second, nothing.as_str()), (Some(8), Some(8), ""));
}

fn who_is_told_to_end_ends_as_it_is_told() {
    let (rank, lead) = Watcher::follow(1);
    lead.sends(Frame::Failed(Verdict { rank: 2, step: 1, cause: "no memory".into(), code: 4 }));
    assert_eq!(rank.end(), (Some(4), String::new()));
}
