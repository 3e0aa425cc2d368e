//! Exactly once, by the names of files.
//!
//! Kept true: a file is named by the first settlement in it, is created only where there is none of that
//! name, whole or not at all, and is never changed. It begins with the number after the last one of the
//! file before. So files form one chain without gap or overlap: of two exporters that would go on
//! from the same place one creates the file, and the other reads where that one ended. An exporter
//! keeps nothing beside the files.

use super::place::Place;
use super::{Format, columns, damaged, events};
use crate::failure::Failure;
use anyhow::Result;
use bytes::Bytes;
use trireme_shared::api::{SettlementReport, SettlementsPage};
use trireme_shared::ids::SettlementSeq;
use trireme_shared::limits;

/// Digits of a number in a name: those of the largest, so that names sort as numbers do.
const DIGITS: usize = 20;

/// A file's name: the first settlement in it.
pub fn file_name(first: SettlementSeq, extension: &str) -> String {
    format!("usage-{:0DIGITS$}.{extension}", first.0)
}

/// The number and the extension in a name that `file_name` gives.
pub fn parse_name(name: &str) -> Option<(SettlementSeq, &str)> {
    let (digits, extension) = name.strip_prefix("usage-")?.split_once('.')?;
    let plain = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    let first = digits.parse().ok().filter(|_| plain)?;
    Some((SettlementSeq(first), extension))
}

/// What a file is to hold.
pub enum Content<'a> {
    Rows(&'a [SettlementReport]),
    /// That these were gone before anybody exported them.
    Lost {
        first: SettlementSeq,
        last: SettlementSeq,
    },
}

/// Where a file ends, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub cluster: String,
    pub last: SettlementSeq,
}

/// What one step did.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Wrote {
        name: String,
        first: SettlementSeq,
        last: SettlementSeq,
    },
    Skipped {
        name: String,
        first: SettlementSeq,
        last: SettlementSeq,
    },
    /// Another exporter, or a try of ours that was thought to have failed, had written the file.
    Theirs,
    /// All there is is exported.
    Done,
}

#[derive(Debug)]
pub enum Fault {
    /// Of the cluster or the place: trying again may help.
    Passing(anyhow::Error),
    Lasting(anyhow::Error),
}

impl Fault {
    pub fn into_inner(self) -> anyhow::Error {
        match self {
            Self::Passing(error) | Self::Lasting(error) => error,
        }
    }

    fn lasting(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Lasting(Failure::new(what, next).into())
    }
}

pub struct Exporter<'a, A> {
    ask: A,
    place: &'a Place,
    format: Format,
    rows: u64,
    skip_lost: bool,
    /// Where the newest file that we know of ends; not known before the first step.
    known: Option<Known>,
}

#[derive(Clone)]
enum Known {
    /// There is no file.
    Nothing,
    End(End),
}

impl<'a, A> Exporter<'a, A>
where
    A: FnMut(Option<SettlementSeq>, u64) -> Result<SettlementsPage>,
{
    /// `ask` gives settlements after one, so many at most; without one, from the oldest kept.
    pub fn new(ask: A, place: &'a Place, format: Format, rows: u64, skip_lost: bool) -> Self {
        Self {
            ask,
            place,
            format,
            rows,
            skip_lost,
            known: None,
        }
    }

    /// The last settlement that is known to be exported.
    pub fn last(&self) -> SettlementSeq {
        match &self.known {
            Some(Known::End(end)) => end.last,
            _ => SettlementSeq(0),
        }
    }

    /// Writes the next file, if there is anything to write.
    pub fn step(&mut self) -> Result<Step, Fault> {
        let known = match &self.known {
            Some(known) => known.clone(),
            None => self.look()?,
        };
        self.known = Some(known.clone());
        let last = self.last();
        let log = (self.ask)(None, 1).map_err(Fault::Passing)?;
        if let Known::End(end) = &known {
            self.check(end, &log)?;
        }
        let first = SettlementSeq(last.0 + 1);
        if log.newest <= last {
            return Ok(Step::Done);
        }
        if log.oldest > first {
            let gone = SettlementSeq(log.oldest.0 - 1);
            return self.skip(&log.cluster, first, gone);
        }
        let rows = self.gather(&log, last)?;
        let last = SettlementSeq(last.0 + rows.len() as u64);
        let wrote = |name| Step::Wrote { name, first, last };
        self.create(&log.cluster, first, last, Content::Rows(&rows), wrote)
    }

    /// Finds the newest file and reads where it ends.
    fn look(&self) -> Result<Known, Fault> {
        match self.place.newest(self.format.extension())? {
            Some(first) => self.read(first).map(Known::End),
            None => Ok(Known::Nothing),
        }
    }

    fn read(&self, first: SettlementSeq) -> Result<End, Fault> {
        let name = file_name(first, self.format.extension());
        let bytes: Bytes = self.place.read(&name)?;
        let end = match self.format {
            Format::Cloudevents => events::end(&bytes),
            Format::Parquet => columns::end(bytes),
        };
        let end = end.map_err(|error| Fault::Lasting(damaged(&name, error)))?;
        match end.last >= first {
            true => Ok(end),
            false => {
                let why = format!("it ends with settlement {}", end.last);
                Err(Fault::Lasting(damaged(&name, why)))
            }
        }
    }

    fn check(&self, end: &End, log: &SettlementsPage) -> Result<(), Fault> {
        if end.cluster != log.cluster {
            return Err(Fault::lasting(
                format!(
                    "{} holds the usage of cluster {}, and this is cluster {}",
                    self.place, end.cluster, log.cluster
                ),
                "export to a destination of its own; a restored cluster is another one",
            ));
        }
        if end.last > log.newest {
            // A coordinator that is cut off from the others may be behind.
            let what = format!(
                "{} ends with settlement {}, and the cluster's newest is {}",
                self.place, end.last, log.newest
            );
            let next = "see by `cluster status` that all coordinators are well, then try again";
            return Err(Fault::Passing(Failure::new(what, next).into()));
        }
        Ok(())
    }

    fn skip(
        &mut self,
        cluster: &str,
        first: SettlementSeq,
        last: SettlementSeq,
    ) -> Result<Step, Fault> {
        if !self.skip_lost {
            return Err(Fault::lasting(
                format!("the cluster keeps settlements {first} to {last} no longer"),
                "go on without them by --skip-lost: what they added up to is still in usage and \
                 statements; run the export with --follow to lose none",
            ));
        }
        let skipped = |name| Step::Skipped { name, first, last };
        self.create(cluster, first, last, Content::Lost { first, last }, skipped)
    }

    /// Settlements after `last`, up to a file's worth or the log's end.
    fn gather(
        &mut self,
        log: &SettlementsPage,
        last: SettlementSeq,
    ) -> Result<Vec<SettlementReport>, Fault> {
        let wanted = self.rows.min(log.newest.0 - last.0);
        let mut rows: Vec<SettlementReport> = Vec::new();
        while (rows.len() as u64) < wanted {
            let after = SettlementSeq(last.0 + rows.len() as u64);
            let limit = (wanted - rows.len() as u64).min(limits::BILLING_PAGE_ROWS_MAX);
            let page = (self.ask)(Some(after), limit).map_err(Fault::Passing)?;
            let mut numbers = after.0 + 1..=after.0 + limit;
            let in_order = |row: &SettlementReport| numbers.next() == Some(row.sequence.0);
            let whole = page.settlements.iter().all(in_order) && page.cluster == log.cluster;
            if page.settlements.is_empty() || !whole {
                let what = format!("a coordinator does not tell the settlements after {after}");
                let next = "see by `cluster status` that all coordinators are well, then try again";
                return Err(Fault::Passing(Failure::new(what, next).into()));
            }
            rows.extend(page.settlements);
        }
        Ok(rows)
    }

    fn create(
        &mut self,
        cluster: &str,
        first: SettlementSeq,
        last: SettlementSeq,
        content: Content<'_>,
        step: impl FnOnce(String) -> Step,
    ) -> Result<Step, Fault> {
        let bytes = match self.format {
            Format::Cloudevents => events::file(cluster, &content),
            Format::Parquet => columns::file(cluster, &content),
        };
        let name = file_name(first, self.format.extension());
        let created = self.place.create(&name, bytes.map_err(Fault::Lasting)?)?;
        let end = match created {
            true => End {
                cluster: cluster.to_owned(),
                last,
            },
            false => self.read(first)?,
        };
        self.known = Some(Known::End(end));
        Ok(if created { step(name) } else { Step::Theirs })
    }
}
