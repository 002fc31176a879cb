//! The index as the spools tell it, at the start.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use synapsedb_core::change::Relation;
use synapsedb_core::history::Writer;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::client::Client;
use synapsedb_pg::pgoutput::{self, Message};

use super::{Beside, Side, concerns, note, note_commit_of, relation_id, version};
use crate::replication::foreign_keys::{self, Concern, ForeignKeys};
use crate::replication::keys::{self, LocalKeys, RowKeys};
use crate::replication::recheck::Recheck;
use crate::replication::spool::{Frame, Header, Spool};
use crate::replication::{Shared, policies};

/// Reads what the spools hold of transactions that are local or were applied already, once each in a process; also
/// those of lives that have ended.
///
/// # Errors
/// A spool cannot be read, or the server cannot be asked for its tables.
pub(crate) async fn rebuild(shared: &Shared, applied: &VersionVector) -> Result<()> {
    shared.spools.open_ended(&shared.raft.state())?;
    let mut lives: BTreeMap<NodeId, Vec<(Spool, bool)>> = BTreeMap::new();
    for ((origin, _), spool) in shared.spools.ended() {
        lives.entry(origin).or_default().push((spool, true));
    }
    for (origin, (_, spool)) in shared.spools.all() {
        lives.entry(origin).or_default().push((spool, false));
    }
    lives.retain(|origin, _| !shared.recent.rebuilt.borrow().contains(origin));
    if lives.is_empty() {
        shared.rechecks.begin(Vec::new());
        return Ok(());
    }
    let client = shared.sql("history").await?;
    let mut tables = Tables { client, known: HashMap::new(), again: false, beaten: Vec::new() };
    loop {
        read_lives(shared, applied, &lives, &mut tables).await?;
        if !std::mem::take(&mut tables.again) {
            break;
        }
        tables.known.clear();
        tables.beaten.clear();
    }
    // Not before all is known that a policy may look at.
    shared.rechecks.begin(tables.beaten);
    if lives.contains_key(&shared.identity.node) {
        shared.outcomes.filled();
    }
    shared.recent.rebuilt.send_modify(|rebuilt| rebuilt.extend(lives.keys()));
    shared.recent.lock().bury_losers();
    Ok(())
}

/// Reads the spools of these origins.
async fn read_lives(
    shared: &Shared,
    applied: &VersionVector,
    lives: &BTreeMap<NodeId, Vec<(Spool, bool)>>,
    tables: &mut Tables,
) -> Result<()> {
    let decoded = shared.spools.own_vector();
    // What was written here first: what of the others met it unseen, and was not looked at again, shows then.
    let here = shared.identity.node;
    let own = lives.get_key_value(&here);
    let others = lives.iter().filter(|(origin, _)| **origin != here);
    for (&origin, lives) in own.into_iter().chain(others) {
        let local = origin == here;
        let through = if local { Lsn(u64::MAX) } else { applied.get(origin) };
        let decoded = if local { Lsn(u64::MAX) } else { decoded.get(origin) };
        for &(ref spool, ended) in lives {
            let part = Part { origin, ended, through, decoded };
            read_spool(shared, tables, spool, &part)
                .await
                .with_context(|| format!("read the spool of node {origin} for recent writes"))?;
        }
    }
    Ok(())
}

/// What of a spool is read.
struct Part {
    origin: NodeId,
    /// The life has ended: what it had seen says nothing of what the next one writes upon.
    ended: bool,
    /// Up to where its transactions are applied here.
    through: Lsn,
    /// Up to where they are decoded from the own WAL too.
    decoded: Lsn,
}

/// The unique indexes of the local tables, asked for once each.
struct Tables {
    client: Client,
    known: HashMap<(String, String), (LocalKeys, Vec<Concern>)>,
    /// The policy of a table has changed whose writes were read before as if it had not.
    again: bool,
    /// What of the others met a local write unseen.
    beaten: Vec<Recheck>,
}

/// What is noted of the rows of a relation.
struct Noted {
    keys: Option<RowKeys>,
    foreign: ForeignKeys,
    /// The relation, if its rows are the tables' policies.
    policies: Option<Relation>,
}

impl Tables {
    async fn noted(&mut self, shared: &Shared, raw: &Bytes) -> Result<Option<Noted>> {
        let Message::Relation(relation) = pgoutput::decode(raw)? else { return Ok(None) };
        let name = (relation.schema.clone(), relation.name.clone());
        if !self.known.contains_key(&name) {
            let indexes = keys::load(shared, &self.client, &name.0, &name.1).await?;
            let concerns = foreign_keys::load(&self.client, &name.0, &name.1).await?;
            self.known.insert(name.clone(), (indexes, concerns));
        }
        let (indexes, concerns) = &self.known[&name];
        let foreign = ForeignKeys::new(&relation, concerns);
        let keys = RowKeys::new(&relation, indexes);
        let policies = policies::is_policy(&name.0, &name.1).then_some(relation);
        Ok(Some(Noted { keys, foreign, policies }))
    }

    /// Notes a change of a table's policy.
    fn note_policy(
        &mut self,
        shared: &Shared,
        relation: &Relation,
        raw: &Bytes,
        version: RowVersion,
    ) -> Result<()> {
        let Message::Change(change) = pgoutput::decode(raw)? else { return Ok(()) };
        let table = policies::note(shared, relation, &change, version);
        let known = table.and_then(|table| self.known.get(&table));
        self.again |= known.is_some_and(|(keys, _)| keys.policy.is_none());
        Ok(())
    }
}

async fn read_spool(
    shared: &Shared,
    tables: &mut Tables,
    spool: &Spool,
    part: &Part,
) -> Result<()> {
    let origin = part.origin;
    let is_own = origin == shared.identity.node && !part.ended;
    if is_own && spool.first_available() == Lsn::ZERO {
        shared.outcomes.spool_is_whole();
    }
    let mut reader = spool.reader_after(spool.first_available())?;
    let mut by_raw: HashMap<Bytes, Option<Noted>> = HashMap::new();
    let mut current: HashMap<u32, Bytes> = HashMap::new();
    let mut open: Option<Header> = None;
    while let Some(frame) = reader.try_next()? {
        if let Some(header) = frame.header() {
            if header.commit_lsn > part.through {
                break;
            }
            let nothing = VersionVector::new();
            let seen = if part.ended { &nothing } else { &header.vector };
            // Only what is one frame can have been in a group.
            let alone = !frame.is_last();
            note_commit_of(&mut shared.recent.lock(), origin, &header, seen, alone);
            current.clear();
            open = Some(header);
        }
        for raw in frame.messages().filter(|raw| raw.first() == Some(&b'R')) {
            let copy = Bytes::copy_from_slice(&raw);
            if !by_raw.contains_key(&copy) {
                by_raw.insert(copy.clone(), tables.noted(shared, &raw).await?);
            }
            current.insert(relation_id(&raw), copy);
        }
        let Some(header) = &open else { continue };
        shared.outcomes.reread(&frame, header, is_own);
        let side = match header.commit_lsn <= part.decoded {
            true => Side::Known,
            false => Side::Remote,
        };
        let writer = Writer { version: version(origin, header), vector: &header.vector };
        let noted = |relation: u32| {
            let raw = current.get(&relation)?;
            Some((raw, by_raw.get(raw)?.as_ref()?))
        };
        let is_row = |raw: &Bytes| matches!(raw.first(), Some(b'I' | b'U' | b'D'));
        for raw in frame.messages().filter(is_row) {
            let noted = noted(relation_id(&raw)).and_then(|(_, noted)| noted.policies.as_ref());
            if let Some(relation) = noted {
                tables.note_policy(shared, relation, &raw, writer.version)?;
            }
        }
        let beaten = note_frame(shared, &frame, &writer, side, noted)?;
        tables.beaten.extend(beaten);
    }
    Ok(())
}

fn note_frame<'k>(
    shared: &Shared,
    frame: &Frame,
    writer: &Writer<'_>,
    side: Side,
    noted: impl Fn(u32) -> Option<(&'k Bytes, &'k Noted)>,
) -> Result<Vec<Recheck>> {
    let mut orphans = Vec::new();
    let mut beaten = Vec::new();
    let here = shared.identity.node;
    let mut history = shared.recent.lock();
    for raw in frame.messages() {
        let Some((relation, Noted { keys, foreign, .. })) = noted(relation_id(&raw)) else {
            continue;
        };
        // Any row that was inserted may have lost to a local delete.
        let may_have_lost = raw.first() == Some(&b'I') && !history.is_quiet();
        let keys = keys.as_ref().filter(|keys| may_have_lost || concerns(keys, &raw, side));
        if keys.is_none() && foreign.is_empty() {
            continue;
        }
        if let Message::Change(change) = pgoutput::decode(&raw)? {
            if let Some(keys) = keys
                && (note(&mut history, keys, &change, writer, side) || keys.policy().is_some())
            {
                let beside = Beside { history: &history, here, keys, change: &change, writer };
                for (version, place) in beside.taken().into_iter().chain(beside.made()) {
                    let change = (relation.clone(), Bytes::copy_from_slice(&raw));
                    beaten.push(Recheck::new(change, version, place, VersionVector::new()));
                }
            }
            // What was not looked up before this start is; what was is in the log already.
            foreign.note(&mut history, &change, writer, &mut orphans);
        }
    }
    drop(history);
    shared.look_for_orphans(orphans);
    Ok(beaten)
}
