//! Messages that nobody acknowledges: what is said again soon anyway.

use bytes::Bytes;

use crate::contract::header::Headers;

use super::header::to_nats;
use super::{Client, Connection, Error, Outcome};

impl Client {
    /// Sends a message, if the connection is there. Whether anybody took it is not known.
    ///
    /// # Errors
    /// When it could not be sent: the connection is down, or a header cannot be carried.
    pub async fn tell(&self, subject: String, headers: &Headers, payload: Bytes) -> Result<(), Error> {
        let refuse = |outcome, found: String| Error::Request {
            doing: format!("sending to {subject}"),
            url: self.url().to_owned(),
            outcome,
            code: None,
            found,
        };
        if *self.connection().borrow() == Connection::Down {
            // It would be sent later, when it is no longer true.
            return Err(refuse(Outcome::Definite, "the connection is down".to_owned()));
        }
        let headers = to_nats(headers).map_err(|reason| refuse(Outcome::Refused, reason))?;
        let sent = self.raw().publish_with_headers(subject.clone(), headers, payload).await;
        sent.map_err(|e| refuse(Outcome::Unknown, e.to_string()))
    }
}
