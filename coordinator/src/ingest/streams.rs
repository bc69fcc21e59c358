//! Reads one agent's stream: each message checked, stamped and handed to the driver. A stream ends with the
//! certificate that it was opened with: an agent that was given no new one has no say any more.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use somersault_coordinator_core::Input;
use somersault_proto::model::{Beat, FromAgent, FromCoordinator, Grant, Hello, ModelError, NodeName};
use somersault_proto::v1;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::agents::{BeatStream, Session};
use crate::convert;
use crate::inbox::{Event, Inbox};
use crate::metrics::{Metrics, Refused};

/// Between two messages of one stream: 200 a second, forty times the beats of the fast profile. An agent that
/// sends more is slowed down by the flow control of its own connection, and nobody else notices.
const SPACING: Duration = Duration::from_millis(5);
/// An agent says hello at once.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Reads one stream of one node.
pub struct Reader {
    /// Who, by its certificate.
    pub node: NodeName,
    /// When that ends.
    pub not_after: SystemTime,
    /// Unique in this process.
    pub id: u64,
    /// To the driver.
    pub inbox: Inbox,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why a stream ends.
enum End {
    /// The peer ended it, a newer one took over, or we stop.
    Quiet,
    /// The peer must be told.
    Refused(Refused, Status),
}

impl Reader {
    /// Reads beats until the stream ends.
    pub async fn beats(self, inbound: Streaming<v1::Beat>, grants: mpsc::Sender<Result<Grant, Status>>) {
        let end = CancellationToken::new();
        let stream = BeatStream { id: self.id, grants: grants.clone(), end: end.clone() };
        if self.inbox.send(Event::BeatsOpened { node: self.node.clone(), stream }).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            ended = self.read_beats(inbound) => ended,
            ended = self.certificate_ended() => ended,
            () = end.cancelled() => End::Quiet,
            () = grants.closed() => End::Quiet,
        };
        self.close(ended, &grants).await;
    }

    /// Reads a session until it ends.
    pub async fn session(
        self,
        mut inbound: Streaming<v1::FromAgent>,
        orders: mpsc::Sender<Result<FromCoordinator, Status>>,
    ) {
        let hello = match self.hello(&mut inbound).await {
            Ok(hello) => hello,
            Err(ended) => return self.close(ended, &orders).await,
        };
        let end = CancellationToken::new();
        let session = Session { id: self.id, hello: hello.clone(), orders: orders.clone(), end: end.clone() };
        if self.inbox.send(Event::SessionOpened { node: self.node.clone(), session }).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            ended = self.read_session(inbound, &hello) => ended,
            ended = self.certificate_ended() => ended,
            () = end.cancelled() => End::Quiet,
            () = orders.closed() => End::Quiet,
        };
        self.close(ended, &orders).await;
    }

    /// Waits for the end of the certificate. An agent opens new streams with its next one long before.
    async fn certificate_ended(&self) -> End {
        sleep(self.not_after.duration_since(SystemTime::now()).unwrap_or_default()).await;
        End::Refused(Refused::CertificateEnded, certificate_ended())
    }

    async fn read_beats(&self, mut inbound: Streaming<v1::Beat>) -> End {
        loop {
            let beat: Beat = match self.next(&mut inbound).await {
                Ok(beat) => beat,
                Err(ended) => return ended,
            };
            if let Err(ended) = self.speaks_for_itself(&beat.node) {
                return ended;
            }
            self.metrics.beat();
            let (node, boot_id) = (convert::node(&beat.node), convert::boot_id(&beat.boot_id));
            let input = if beat.goodbye {
                Input::Goodbye { node, boot_id }
            } else {
                Input::Beat { node, boot_id, sequence: beat.sequence }
            };
            if self.inbox.send(Event::Input(input)).await.is_err() {
                return End::Quiet;
            }
            sleep(SPACING).await;
        }
    }

    async fn hello(&self, inbound: &mut Streaming<v1::FromAgent>) -> Result<Hello, End> {
        let first = timeout(HELLO_WITHIN, self.next::<_, FromAgent>(inbound)).await;
        let Ok(first) = first else {
            let status = Status::deadline_exceeded(format!("no hello within {HELLO_WITHIN:?}"));
            return Err(End::Refused(Refused::InvalidMessage, status));
        };
        let FromAgent::Hello(hello) = first? else {
            let status = Status::failed_precondition("the first message of a session must be hello");
            return Err(End::Refused(Refused::InvalidMessage, status));
        };
        self.speaks_for_itself(&hello.node)?;
        Ok(hello)
    }

    async fn read_session(&self, mut inbound: Streaming<v1::FromAgent>, hello: &Hello) -> End {
        loop {
            let message: FromAgent = match self.next(&mut inbound).await {
                Ok(message) => message,
                Err(ended) => return ended,
            };
            let node = self.node.clone();
            let event = match message {
                FromAgent::Hello(_) => {
                    let status = Status::failed_precondition("a session has one hello");
                    return End::Refused(Refused::InvalidMessage, status);
                }
                FromAgent::Report(report) => Event::Input(Input::Report {
                    node: convert::node(&node),
                    report: Box::new(convert::report(hello, self.not_after, report)),
                }),
                FromAgent::Progress(progress) => Event::Progress { node, progress },
                FromAgent::Probe(answer) => Event::ProbeAnswered { peer: node, answer },
            };
            if self.inbox.send(event).await.is_err() {
                return End::Quiet;
            }
            sleep(SPACING).await;
        }
    }

    /// The next message, checked.
    async fn next<W, T: TryFrom<W, Error = ModelError>>(&self, inbound: &mut Streaming<W>) -> Result<T, End> {
        match inbound.message().await {
            Ok(Some(message)) => {
                T::try_from(message).map_err(|error| End::Refused(Refused::InvalidMessage, error.into()))
            }
            // A message beyond the limit, or bytes that are no message.
            Err(status) if is_our_refusal(&status) => Err(End::Refused(Refused::BrokenStream, status)),
            // Ended, or merely broken.
            Ok(None) | Err(_) => Err(End::Quiet),
        }
    }

    fn speaks_for_itself(&self, claimed: &NodeName) -> Result<(), End> {
        if *claimed == self.node {
            return Ok(());
        }
        let status = Status::permission_denied(format!(
            "the certificate is of node {}, the message speaks for node {claimed}",
            self.node
        ));
        Err(End::Refused(Refused::ForeignNode, status))
    }

    async fn close<T>(&self, ended: End, answers: &mpsc::Sender<Result<T, Status>>) {
        if let End::Refused(why, status) = ended {
            tracing::warn!(node = %self.node, reason = ?why, "stream refused: {}", status.message());
            self.metrics.refused(why);
            // The peer may not read; it is then not told.
            drop(answers.try_send(Err(status)));
        }
        let ended = Event::StreamEnded { node: self.node.clone(), id: self.id };
        self.inbox.send(ended).await.unwrap_or_default();
    }
}

/// Said of a stream whose certificate has ended, whether it was open then or not.
pub fn certificate_ended() -> Status {
    Status::unauthenticated("the certificate of this connection has ended")
}

/// Codes by which the decoder refuses a message, as opposed to a connection that ended.
fn is_our_refusal(status: &Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::OutOfRange | Code::ResourceExhausted | Code::Internal | Code::InvalidArgument
    ) && std::error::Error::source(status).is_none()
}
