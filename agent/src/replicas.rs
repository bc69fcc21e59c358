//! Finds the replicas of the coordinator, and keeps one task for each.
//!
//! ```text
//!   --coordinator names --look up--> every address --agent core--> at most three --watch--> beats, sessions
//!        ^--- 5 s later, or 1 s after a stream of beats has ended ---'
//! ```
//!
//! The name of a headless Service resolves to the address of every replica. A look-up that fails changes nothing:
//! a cluster whose DNS is away must not look like one whose nodes are.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use somersault_agent_core::replicas::Replicas;
use somersault_proto::model::Address;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::clock::boottime;

/// How often the names are looked up. Cluster DNS keeps an answer for 5 s (the default of `CoreDNS`), so a shorter time
/// would only ask its cache; and a thousand agents then ask 200 times a second.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// Least time between two looks, and the time to the next one while some name is not known yet.
const LOOK_GAP: Duration = Duration::from_secs(1);

/// Looks up the replicas' names.
pub struct Resolver<L> {
    names: Vec<Address>,
    /// What each name resolved to when it last did.
    known: Vec<Vec<SocketAddr>>,
    /// Said once, not at every attempt.
    last_errors: Vec<String>,
    replicas: Replicas,
    look_up: L,
    found: watch::Sender<Vec<SocketAddr>>,
    again: Arc<Notify>,
}

/// How a name is looked up.
pub trait LookUp {
    /// Every address that it stands for.
    fn addresses(&self, name: &Address) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// By the system: `/etc/hosts`, DNS. How long that may take is said in `resolv.conf`; a thread waits meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl LookUp for System {
    async fn addresses(&self, name: &Address) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name.as_str()).await?.collect())
    }
}

impl<L: LookUp> Resolver<L> {
    /// One that has not looked yet. `again` makes it look sooner.
    pub fn new(
        names: Vec<Address>,
        look_up: L,
        again: Arc<Notify>,
    ) -> (Self, watch::Receiver<Vec<SocketAddr>>) {
        let (found, receiver) = watch::channel(Vec::new());
        let known = vec![Vec::new(); names.len()];
        let last_errors = vec![String::new(); names.len()];
        (Self { names, known, last_errors, replicas: Replicas::default(), look_up, found, again }, receiver)
    }

    /// Looks for ever.
    pub async fn look_for_ever(mut self) {
        loop {
            self.look().await;
            let pause = if self.known.iter().any(Vec::is_empty) { LOOK_GAP } else { LOOK_PERIOD };
            let wanted = async {
                sleep(LOOK_GAP).await;
                self.again.notified().await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = wanted => {}
            }
        }
    }

    async fn look(&mut self) {
        for at in 0..self.names.len() {
            let name = &self.names[at];
            let error = match self.look_up.addresses(name).await {
                Ok(addresses) if addresses.is_empty() => "no address has this name".to_owned(),
                Ok(addresses) => {
                    self.known[at] = addresses;
                    String::new()
                }
                Err(error) => error.to_string(),
            };
            if error != self.last_errors[at] && !error.is_empty() {
                warn!(coordinator = %name, error, "cannot look up the coordinator; the addresses known so far stay");
            }
            self.last_errors[at] = error;
        }
        let addresses = self.known.concat();
        // Nothing was ever found, or everything was lost at once: there is nothing better than what is known.
        if addresses.is_empty() {
            return;
        }
        let replicas = self.replicas.listed(boottime(), &addresses);
        self.found.send_if_modified(|found| {
            let changed = *found != replicas;
            if changed {
                info!(?replicas, "coordinator replicas");
                *found = replicas;
            }
            changed
        });
    }
}

/// One task for each replica.
#[derive(Default)]
pub struct Tasks {
    running: BTreeMap<SocketAddr, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Tasks {
    /// Starts and ends tasks until there is one for each of these replicas, and returns those that are no more.
    pub fn follow<T>(&mut self, replicas: &[SocketAddr], start: impl Fn(SocketAddr) -> T) -> Vec<SocketAddr>
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let gone: Vec<_> =
            self.running.keys().filter(|running| !replicas.contains(running)).copied().collect();
        for replica in &gone {
            if let Some(task) = self.running.remove(replica) {
                task.abort();
            }
        }
        for &replica in replicas {
            self.running.entry(replica).or_insert_with(|| self.tasks.spawn(start(replica)));
        }
        gone
    }

    /// Waits until none is left. A panic of one is a panic of all, as if there were no tasks.
    pub async fn end(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{Instant, timeout};

    use super::*;

    /// Answers as the test says, and notes when it was asked.
    #[derive(Clone)]
    struct Dns(Arc<Mutex<Said>>);

    struct Said {
        answer: io::Result<Vec<SocketAddr>>,
        asked: Vec<Instant>,
    }

    fn parsed(answer: io::Result<&[&str]>) -> io::Result<Vec<SocketAddr>> {
        answer.map(|texts| texts.iter().map(|text| text.parse().expect("address")).collect())
    }

    impl Dns {
        fn say(&self, answer: io::Result<&[&str]>) {
            self.0.lock().expect("not poisoned").answer = parsed(answer);
        }

        fn asked(&self) -> Vec<Instant> {
            self.0.lock().expect("not poisoned").asked.clone()
        }
    }

    impl LookUp for Dns {
        async fn addresses(&self, _name: &Address) -> io::Result<Vec<SocketAddr>> {
            let mut said = self.0.lock().expect("not poisoned");
            said.asked.push(Instant::now());
            match &said.answer {
                Ok(addresses) => Ok(addresses.clone()),
                Err(error) => Err(error.kind().into()),
            }
        }
    }

    struct Running {
        dns: Dns,
        found: watch::Receiver<Vec<SocketAddr>>,
        again: Arc<Notify>,
    }

    fn run(answer: io::Result<&[&str]>) -> Running {
        let said = Said { answer: parsed(answer), asked: Vec::new() };
        let (dns, again) = (Dns(Arc::new(Mutex::new(said))), Arc::new(Notify::new()));
        let name = "somersault-coordinator:7443".parse().expect("address");
        let (resolver, found) = Resolver::new(vec![name], dns.clone(), again.clone());
        tokio::spawn(resolver.look_for_ever());
        Running { dns, found, again }
    }

    async fn next(found: &mut watch::Receiver<Vec<SocketAddr>>) -> Vec<String> {
        timeout(Duration::from_mins(1), found.changed()).await.expect("in time").expect("open");
        found.borrow_and_update().iter().map(ToString::to_string).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_of_the_name_is_found_and_a_new_one_follows() {
        let mut running = run(Ok(&["10.0.0.2:7443", "10.0.0.1:7443"]));
        assert_eq!(next(&mut running.found).await, ["10.0.0.1:7443", "10.0.0.2:7443"]);
        running.dns.say(Ok(&["10.0.0.2:7443", "10.0.0.3:7443"]));
        let began = Instant::now();
        // The replaced one is kept for a while.
        assert_eq!(next(&mut running.found).await, ["10.0.0.1:7443", "10.0.0.2:7443", "10.0.0.3:7443"]);
        assert_eq!(began.elapsed(), LOOK_PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_fails_changes_nothing() {
        let mut running = run(Ok(&["10.0.0.1:7443"]));
        next(&mut running.found).await;
        running.dns.say(Err(io::ErrorKind::TimedOut.into()));
        sleep(Duration::from_mins(10)).await;
        assert!(!running.found.has_changed().expect("open"));
        running.dns.say(Ok(&[]));
        sleep(Duration::from_mins(10)).await;
        assert!(!running.found.has_changed().expect("open"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_known_yet_is_looked_up_each_second() {
        let mut running = run(Err(io::ErrorKind::NotFound.into()));
        sleep(Duration::from_secs(10)).await;
        running.dns.say(Ok(&["10.0.0.1:7443"]));
        assert_eq!(next(&mut running.found).await, ["10.0.0.1:7443"]);
        let asked = running.dns.asked();
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] == LOOK_GAP), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_stream_makes_it_look_at_once_but_no_more_than_once_a_second() {
        let mut running = run(Ok(&["10.0.0.1:7443"]));
        next(&mut running.found).await;
        for _ in 0..30 {
            running.again.notify_one();
            sleep(Duration::from_millis(100)).await;
        }
        let asked = running.dns.asked();
        assert!((3..=5).contains(&asked.len()), "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= LOOK_GAP), "{asked:?}");
    }

    /// Tells by its end that a task has ended.
    struct Guard(Arc<Mutex<Vec<SocketAddr>>>, SocketAddr);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.lock().expect("not poisoned").retain(|address| *address != self.1);
        }
    }

    #[tokio::test]
    async fn there_is_one_task_for_each_replica() {
        let alive = Arc::new(Mutex::new(Vec::new()));
        let start = |replica| {
            alive.lock().expect("not poisoned").push(replica);
            let guard = Guard(alive.clone(), replica);
            async move {
                std::future::pending::<()>().await;
                drop(guard);
            }
        };
        let address = |number| SocketAddr::from(([10, 0, 0, number], 1));
        let mut tasks = Tasks::default();
        assert!(tasks.follow(&[address(1), address(2)], start).is_empty());
        assert_eq!(tasks.follow(&[address(2), address(3)], start), [address(1)]);
        tokio::task::yield_now().await;
        assert_eq!(*alive.lock().expect("not poisoned"), [address(2), address(3)]);
        assert_eq!(tasks.follow(&[], start), [address(2), address(3)]);
        tasks.end().await;
        assert!(alive.lock().expect("not poisoned").is_empty());
    }
}
