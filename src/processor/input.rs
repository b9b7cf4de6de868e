//! A message of the input stream, and what is checked before a fold sees it.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::contract::block::Damage;
use crate::contract::header::{self, Headers};
use crate::contract::observation::Observation;
use crate::contract::trace::Context;
use crate::contract::{Subject, Tenant, Token, quarantine};

/// A message as the input stream delivered it.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its sequence in the stream.
    pub seq: u64,
    /// Its subject, with the number that the stream's transform appended.
    pub subject: String,
    /// Its headers; none if they cannot be read.
    pub headers: Headers,
    /// What of it cannot be read: such a message goes to quarantine.
    pub damage: Option<Damage>,
    /// Its bytes.
    pub body: Bytes,
    /// When the stream stored it.
    pub stored_at: DateTime<Utc>,
    /// How often it was delivered, this time included.
    pub tries: u64,
}

/// Where the input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name of the stream.
    pub stream: String,
    /// Which life of the stream.
    pub incarnation: String,
}

impl Input {
    /// Checks the message and takes it apart.
    ///
    /// # Errors
    /// Why it can be no observation of this tenant's feed: the reason that goes to quarantine with it.
    pub(super) fn observation(
        &self,
        tenant: &Tenant,
        feed: &Token,
        origin: &Origin,
    ) -> Result<Observation, String> {
        if let Some(damage) = &self.damage {
            return Err(damage.why.to_string());
        }
        let source = match Subject::parse(&self.subject).map_err(|e| e.to_string())? {
            Subject::Observation { tenant: t, feed: f, source, .. } if t == *tenant && f == *feed => source,
            Subject::Observation { .. }
            | Subject::Commit(_)
            | Subject::Delta(..)
            | Subject::Event(..)
            | Subject::Snapshot(_)
            | Subject::Chunk(..)
            | Subject::Quarantine { .. } => {
                return Err(format!(
                    "the subject {} is no observation of feed {feed}, tenant {}",
                    self.subject,
                    tenant.token()
                ));
            }
        };
        if let Some(claimed) = header::get(&self.headers, header::TENANT_ID)
            && claimed != tenant.as_str()
        {
            // The claim is another tenant's name, perhaps: it stays out of the reason.
            return Err(format!(
                "header {} does not agree with the subject's tenant {}",
                header::TENANT_ID,
                tenant.token()
            ));
        }
        Observation::check_body(&self.body)?;
        let (kind, at) = Observation::kind_and_time(&self.headers, &self.body, self.stored_at)?;
        Ok(Observation {
            tenant: tenant.clone(),
            feed: feed.clone(),
            source,
            kind,
            at,
            stored_at: self.stored_at,
            body: self.body.clone(),
            id: header::get(&self.headers, header::MSG_ID).map(Into::into),
            context: self.context(origin),
            seq: self.seq,
        })
    }

    /// What ties it to the others of its cause, made where it brings nothing of the kind.
    pub(super) fn context(&self, origin: &Origin) -> Context {
        Context::from_headers(
            &self.headers,
            format_args!("{}-{}-{}", origin.stream, origin.incarnation, self.seq),
        )
    }

    pub(super) fn quarantine(&self, reason: String, origin: &Origin) -> quarantine::Record {
        quarantine::Record {
            stream: origin.stream.clone(),
            incarnation: origin.incarnation.clone(),
            seq: self.seq,
            subject: self.subject.clone(),
            headers: self.headers.clone(),
            block: self.damage.as_ref().map(|damage| damage.bytes.clone()).unwrap_or_default(),
            body: self.body.clone(),
            reason,
            tries: self.tries,
        }
    }
}
