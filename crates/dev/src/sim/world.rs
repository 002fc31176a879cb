//! The world of the simulation: users, a network that loses, delays and reorders, cuts, crashes and wrong clocks, one
//! event after the other, all of it decided by a seed; and the checkers that look at every step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;

use super::chance::Chance;
use super::model::{COLUMNS, DELTA, Key, Rules, Transaction, UNIQUE, defined};
use super::node::{Answer, Node, Request, Rigging};
use super::replica::{Breakage, Replica};
use super::statement::{Statement, committed};

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many nodes.
    pub nodes: u16,
    /// How many transactions users make before the world is healed.
    pub transactions: usize,
    /// How many primary keys there are.
    pub keys: Key,
    /// How many unique values there are.
    pub values: i64,
    /// The policy of the table; `None` lets the seed choose.
    pub rules: Option<Rules>,
    /// What is left out of the engine on purpose.
    pub breakage: Breakage,
    /// What is left out of the nodes on purpose.
    pub rigging: Rigging,
    /// After how many applied transactions a node is compared with the definition.
    pub check_every: usize,
    /// Whether every step is told.
    pub trace: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: 3,
            transactions: 60,
            keys: 4,
            values: 4,
            rules: None,
            breakage: Breakage::default(),
            rigging: Rigging::default(),
            check_every: 4,
            trace: false,
        }
    }
}

/// What a run has shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Transactions of users.
    pub transactions: usize,
    /// Pairs of them of which neither had seen the other.
    pub concurrent: usize,
    /// Messages that were lost, in cuts too.
    pub lost: usize,
    /// Crashes.
    pub crashes: usize,
    /// Cuts.
    pub cuts: usize,
    /// Comparisons with the definition.
    pub checks: usize,
    /// The most writes that a node remembered.
    pub remembered_max: usize,
    /// Simulated milliseconds from the healing until all nodes were equal and had forgotten everything.
    pub healed_ms: i64,
}

/// How long a healed world may take.
const HEALED_US: i64 = 120_000_000;
/// The time between two rounds of a node, on average.
const ROUND_US: i64 = 4_000;

enum Happening {
    Round(NodeId),
    Ask { from: NodeId, to: NodeId, request: Request },
    Answered { from: NodeId, to: NodeId, answer: Answer },
    Fault,
}

struct World<'c> {
    config: &'c Config,
    rules: Rules,
    chance: Chance,
    now_us: i64,
    queue: BinaryHeap<Reverse<(i64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    number: u64,
    nodes: BTreeMap<NodeId, Node>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    healed: bool,
    made: BTreeMap<(NodeId, Lsn), Transaction>,
    applied_since_check: usize,
    report: Report,
}

/// Runs the world of a seed to its end.
///
/// # Errors
/// What was violated, and when.
pub fn run(seed: u64, config: &Config) -> Result<Report, String> {
    let mut chance = Chance::new(seed);
    let all = Rules::all();
    let rules = config.rules.clone().unwrap_or_else(|| chance.one_of(&all).clone());
    let members: Vec<NodeId> = (1..=config.nodes).filter_map(NodeId::new).collect();
    let node = |id: &NodeId| {
        let replica = Replica::new(rules.clone(), config.breakage);
        (*id, Node::new(*id, &members, replica, config.rigging))
    };
    let mut world = World {
        config,
        chance,
        now_us: 1_000_000,
        queue: BinaryHeap::new(),
        happenings: BTreeMap::new(),
        number: 0,
        nodes: members.iter().map(node).collect(),
        cuts: BTreeSet::new(),
        healed: false,
        made: BTreeMap::new(),
        applied_since_check: 0,
        report: Report::default(),
        rules,
    };
    let rules = world.rules.clone();
    let outcome = world.run(&members);
    outcome.map_err(|reason| {
        format!("seed {seed}, {rules:?}, at {:.3} ms: {reason}", world.now_us as f64 / 1000.0)
    })
}

impl World<'_> {
    fn run(&mut self, members: &[NodeId]) -> Result<Report, String> {
        self.say(|| format!("the rules are {:?}", self.rules));
        for member in members {
            self.after(1, Happening::Round(*member));
            let offset = self.chance.between(-200_000, 200_000);
            self.node(*member).clock_offset_us = offset;
        }
        self.after(20_000, Happening::Fault);
        while self.made.len() < self.config.transactions {
            self.step()?;
        }
        self.heal();
        let healed_at = self.now_us;
        while !self.is_settled() {
            if self.now_us > healed_at + HEALED_US {
                return Err(format!("not equal long after the healing: {}", self.difference()));
            }
            self.step()?;
        }
        for member in members {
            self.check_rows(*member)?;
        }
        self.report.healed_ms = (self.now_us - healed_at) / 1000;
        self.report.transactions = self.made.len();
        self.report.concurrent = self.concurrent();
        Ok(self.report.clone())
    }

    fn say(&self, text: impl Fn() -> String) {
        if self.config.trace {
            println!("{:>10.3} ms  {}", self.now_us as f64 / 1000.0, text());
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| unreachable!("every member has a node"))
    }

    fn after(&mut self, us: i64, happening: Happening) {
        self.number += 1;
        self.queue.push(Reverse((self.now_us + us.max(1), self.number)));
        self.happenings.insert(self.number, happening);
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((at, number))) = self.queue.pop() else {
            return Err("nothing happens any more".to_owned());
        };
        self.now_us = at;
        match self.happenings.remove(&number) {
            Some(Happening::Round(id)) => self.round(id),
            Some(Happening::Ask { from, to, request }) => self.asked(from, to, &request),
            Some(Happening::Answered { from, to, answer }) => {
                let node = self.node(to);
                if node.up {
                    node.receive(from, answer);
                }
                Ok(())
            }
            Some(Happening::Fault) => {
                self.fault();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A message on its way, if it is not lost.
    fn send(&mut self, from: NodeId, to: NodeId, message: Happening) {
        let cut = self.cuts.contains(&(from, to)) || self.cuts.contains(&(to, from));
        if cut || (!self.healed && self.chance.percent(10)) {
            self.report.lost += 1;
            return;
        }
        let slow = !self.healed && self.chance.percent(5);
        let delay = self.chance.between(100, if slow { 400_000 } else { 8_000 });
        self.after(delay, message);
    }

    fn asked(&mut self, from: NodeId, to: NodeId, request: &Request) -> Result<(), String> {
        let node = self.node(to);
        if !node.up {
            return Ok(());
        }
        match node.answer(from, request) {
            Ok(answer) => {
                let answered = Happening::Answered { from: to, to: from, answer };
                self.send(to, from, answered);
                Ok(())
            }
            // A request that was long on its way asks for what has come by another one.
            Err(_) if self.nodes[&from].request(request.origin).after > request.after => Ok(()),
            Err(reason) => Err(reason),
        }
    }

    /// One round of a node: a user's statement, what can be applied, requests, and the upkeep.
    fn round(&mut self, id: NodeId) -> Result<(), String> {
        let next = self.chance.between(ROUND_US / 2, ROUND_US * 3 / 2);
        self.after(next, Happening::Round(id));
        if !self.nodes[&id].up {
            return Ok(());
        }
        if !self.healed && self.chance.percent(20) {
            self.statement(id);
        }
        let members: Vec<NodeId> = self.nodes.keys().copied().collect();
        for origin in members.iter().filter(|origin| **origin != id) {
            self.apply(id, *origin)?;
            let peer = match self.chance.percent(80) {
                true => *origin,
                false => *self.chance.one_of(&members),
            };
            if peer != id && self.chance.percent(60) {
                let request = self.nodes[&id].request(*origin);
                self.send(id, peer, Happening::Ask { from: id, to: peer, request });
            }
        }
        let (sync, durable) = (self.chance.percent(40), self.chance.percent(30));
        let node = self.node(id);
        node.pass_checkpoints();
        if sync {
            node.sync_spools();
        }
        if durable {
            node.make_rows_durable();
        }
        node.forget();
        let remembered = node.replica.remembered();
        self.report.remembered_max = self.report.remembered_max.max(remembered);
        Ok(())
    }

    fn statement(&mut self, id: NodeId) {
        let key = self.chance.below(self.config.keys.into()) as Key;
        let other = self.chance.below(self.config.keys.into()) as Key;
        let value = self.chance.between(0, self.config.values);
        let any = self.chance.between(0, 100);
        let statement = match self.chance.below(100) {
            0..25 => Statement::Insert(key, value),
            25..40 => Statement::Update(key, self.chance.below(UNIQUE.into()) as u16, value),
            40..65 => {
                let column = self.chance.between(UNIQUE.into(), COLUMNS.into()) as u16;
                Statement::Update(key, column, if column == DELTA { any - 50 } else { any })
            }
            65..80 => Statement::Delete(key),
            80..96 => Statement::Move(key, other),
            _ => Statement::Truncate,
        };
        let now_us = self.now_us;
        let node = self.node(id);
        let Some((version, seen)) = node.next_version(now_us) else { return };
        let Some(made) = committed(statement, &node.replica.shown(), version, &seen, any) else {
            return;
        };
        node.commit(&made);
        self.say(|| {
            format!("node {id}: {statement:?} is {} at {}", name(&made), version.commit_time)
        });
        self.made.insert(made.position(), made);
    }

    /// Applies what can be applied of an origin, and checks that its causes are there.
    fn apply(&mut self, id: NodeId, origin: NodeId) -> Result<(), String> {
        for _ in 0..self.chance.below(4) {
            let (now_us, before) = (self.now_us, self.nodes[&id].applied.clone());
            let Some(applied) = self.node(id).apply_next(origin, now_us) else { break };
            self.say(|| format!("node {id} applies {}, seen {}", name(&applied), applied.seen));
            if !before.covers(&applied.seen) {
                return Err(format!(
                    "node {id} shows {} before its cause: it had seen {}, the node {before}",
                    name(&applied),
                    applied.seen
                ));
            }
            if before.get(origin).0 + 1 != applied.version.lsn.0 {
                return Err(format!("node {id} applied {} out of turn", name(&applied)));
            }
            self.applied_since_check += 1;
            if self.applied_since_check >= self.config.check_every {
                self.applied_since_check = 0;
                self.check_rows(id)?;
            }
        }
        Ok(())
    }

    /// A node shows exactly the rows that follow from what it has applied.
    fn check_rows(&mut self, id: NodeId) -> Result<(), String> {
        self.report.checks += 1;
        let node = &self.nodes[&id];
        let known = self.made.values();
        let known: Vec<_> =
            known.filter(|t| node.applied.get(t.version.origin) >= t.version.lsn).collect();
        let (shown, expected) = (node.replica.shown(), defined(&self.rules, &known));
        if shown != expected {
            return Err(format!("node {id} shows {shown:?} instead of {expected:?}"));
        }
        for column in 0..usize::from(UNIQUE) {
            let values: BTreeSet<_> = shown.values().map(|row| row[column]).collect();
            if values.len() != shown.len() {
                return Err(format!("node {id} shows a unique value twice: {shown:?}"));
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let next = self.chance.between(5_000, 120_000);
        self.after(next, Happening::Fault);
        let members: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (one, other) = (*self.chance.one_of(&members), *self.chance.one_of(&members));
        match self.chance.below(10) {
            0..3 if one != other => {
                self.report.cuts += 1;
                self.cuts.insert((one, other));
                self.say(|| format!("nodes {one} and {other} are cut from each other"));
            }
            0..6 => {
                self.cuts.clear();
                self.say(|| "the network is whole again".to_owned());
            }
            6..8 => {
                let offset = match self.chance.percent(30) {
                    true => self.chance.between(-3_000_000, 3_000_000),
                    false => self.chance.between(-200_000, 200_000),
                };
                self.node(one).clock_offset_us = offset;
                self.say(|| format!("the clock of node {one} is {offset} us ahead"));
            }
            _ => self.crash_or_start(one),
        }
    }

    fn crash_or_start(&mut self, id: NodeId) {
        let server_too = self.chance.percent(50);
        let node = self.node(id);
        if node.up {
            node.crash(server_too);
            self.report.crashes += 1;
            let what = if server_too { "agent and server" } else { "the agent" };
            self.say(|| format!("node {id}: {what} crashed"));
        } else {
            node.recover();
            self.say(|| format!("node {id} starts, has applied {}", self.nodes[&id].applied));
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.cuts.clear();
        for node in self.nodes.values_mut() {
            if !node.up {
                node.recover();
            }
            node.clock_offset_us = 0;
        }
        self.say(|| "healed".to_owned());
    }

    /// Whether all have applied everything, show the same, and hold nothing back.
    fn is_settled(&self) -> bool {
        let all = self.made.keys();
        let whole =
            |node: &Node| all.clone().all(|(origin, lsn)| node.applied.get(*origin) >= *lsn);
        self.nodes
            .values()
            .all(|node| whole(node) && node.replica.remembered() == 0 && node.spooled() == 0)
    }

    fn difference(&self) -> String {
        let node = |node: &Node| {
            format!(
                "node {} has applied {}, remembers {} and spools {}",
                node.id,
                node.applied,
                node.replica.remembered(),
                node.spooled()
            )
        };
        self.nodes.values().map(node).collect::<Vec<_>>().join("; ")
    }

    fn concurrent(&self) -> usize {
        let all: Vec<_> = self.made.values().collect();
        let with_later = |(index, one): (usize, &&Transaction)| {
            let later = all[index + 1..].iter();
            later.filter(|two| !one.covers(two.version) && !two.covers(one.version)).count()
        };
        all.iter().enumerate().map(with_later).sum()
    }
}

fn name(transaction: &Transaction) -> String {
    format!("{}:{}", transaction.version.origin, transaction.version.lsn.0)
}
