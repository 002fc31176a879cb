//! Plans how a sequence must stand on a node so that no two nodes ever draw the same number from it.
//!
//! The numbers that a sequence could give (its start, then every `increment` further) are dealt out to the nodes
//! like cards: with a stride of 16, node 1 gets the 1st, 17th, 33rd…, node 2 the 2nd, 18th, 34th…. On each node the
//! sequence therefore steps by `increment × stride`, and starts `offset` increments further than its definition says.
//! (PostgreSQL's words: `seqstart`, `seqincrement`, `last_value`, `is_called`.)

/// The numbers of nodes that a sequence is dealt out to, by default: as many as a cluster can have.
pub const STRIDE: u16 = crate::ids::NodeId::MAX;

/// The sequence as it was defined, and the place of a node in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// `START` of the definition, the same on all nodes.
    pub anchor: i64,
    /// `INCREMENT BY` of the definition; negative for a descending sequence, never zero.
    pub increment: i64,
    /// Into how many classes the numbers are dealt out; the same on all nodes for the life of the cluster.
    pub stride: u16,
    /// The node's class, below `stride` ([`NodeId::offset`](crate::ids::NodeId::offset)).
    pub offset: u16,
}

/// The sequence as it stands on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reality {
    /// `seqstart`: where `RESTART` and `TRUNCATE … RESTART IDENTITY` go.
    pub start: i64,
    /// `seqincrement`.
    pub increment: i64,
    /// `seqmin`.
    pub min: i64,
    /// `seqmax`.
    pub max: i64,
    /// `seqcycle`: whether it wraps around at its end.
    pub cycle: bool,
    /// `last_value`.
    pub last_value: i64,
    /// `is_called`: whether `last_value` was given out already.
    pub is_called: bool,
}

/// One change of the sequence. A plan is applied as a whole, in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `ALTER SEQUENCE … INCREMENT BY`.
    Increment(i64),
    /// `ALTER SEQUENCE … START WITH`.
    Start(i64),
    /// `ALTER SEQUENCE … MINVALUE`: where an ascending sequence that cycles begins again.
    Min(i64),
    /// `ALTER SEQUENCE … MAXVALUE`: where a descending sequence that cycles begins again.
    Max(i64),
    /// `setval(…, value, false)`: the number that is given out next. It comes last.
    Next(i64),
}

/// Why a sequence cannot be dealt out. Nothing is to be changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplannable {
    /// An intent that is none.
    #[error(
        "a sequence cannot be dealt out with increment {increment}, stride {stride} and offset {offset}: the increment \
         must not be zero and the offset must be below the stride"
    )]
    Senseless {
        /// The increment of the definition.
        increment: i64,
        /// The number of classes.
        stride: u16,
        /// The node's class.
        offset: u16,
    },
    /// The definition leaves no number for this node, or none that is left.
    #[error(
        "the sequence has no number left for this node between {min} and {max}: the next one would be {needed}. \
         It is unchanged; give it a wider range (such as bigint) or another start"
    )]
    Exhausted {
        /// `seqmin`.
        min: i64,
        /// `seqmax`.
        max: i64,
        /// The number that would be needed; outside the range.
        needed: i128,
    },
    /// The increment times the stride is no bigint.
    #[error(
        "the increment {increment} cannot be multiplied by the stride {stride}; the sequence is unchanged"
    )]
    IncrementTooLarge {
        /// The increment of the definition.
        increment: i64,
        /// The number of classes.
        stride: u16,
    },
}

/// What must change so that the sequence gives only numbers of its node's class, none of them twice. Applied, it leads
/// to an empty plan.
///
/// # Errors
/// The sequence cannot be dealt out; see [`Unplannable`].
pub fn plan(intent: &Intent, reality: &Reality) -> Result<Vec<Action>, Unplannable> {
    let &Intent { increment, stride, offset, .. } = intent;
    if increment == 0 || offset >= stride {
        return Err(Unplannable::Senseless { increment, stride, offset });
    }
    let step = increment
        .checked_mul(i64::from(stride))
        .ok_or(Unplannable::IncrementTooLarge { increment, stride })?;
    let class = Class {
        first: i128::from(intent.anchor) + i128::from(increment) * i128::from(offset),
        step: i128::from(step),
    };
    let within = |needed: i128| {
        i64::try_from(needed)
            .ok()
            .filter(|value| (reality.min..=reality.max).contains(value))
            .ok_or(Unplannable::Exhausted { min: reality.min, max: reality.max, needed })
    };
    let start = within(class.first)?;
    let mut actions = Vec::new();
    if reality.increment != step {
        actions.push(Action::Increment(step));
    }
    if reality.start != start {
        actions.push(Action::Start(start));
    }
    if reality.cycle {
        // PostgreSQL begins again at the bound itself, so the bound must be of the class.
        let (bound, action): (i64, fn(i64) -> Action) =
            if step > 0 { (reality.min, Action::Min) } else { (reality.max, Action::Max) };
        let aligned = within(class.at_or_past(i128::from(bound)))?;
        if aligned != bound {
            actions.push(action(aligned));
        }
    }
    let last = i128::from(reality.last_value);
    let in_place = class.at_or_past(last) == last;
    if !in_place {
        actions.push(Action::Next(next(&class, reality, within)?));
    }
    Ok(actions)
}

/// The first number of the class at or past `last_value`, which itself is of another class. A sequence that cycles and
/// has come to its end goes back to its beginning.
fn next(
    class: &Class,
    reality: &Reality,
    within: impl Fn(i128) -> Result<i64, Unplannable>,
) -> Result<i64, Unplannable> {
    let next = within(class.at_or_past(i128::from(reality.last_value)));
    if next.is_err() && reality.cycle {
        let bound = if class.step > 0 { reality.min } else { reality.max };
        return within(class.at_or_past(i128::from(bound)));
    }
    next
}

/// The numbers `first + n × step` for every whole `n`, also negative ones.
struct Class {
    first: i128,
    step: i128,
}

impl Class {
    /// The first number of the class that is `value` or comes after it in the direction of the sequence.
    fn at_or_past(&self, value: i128) -> i128 {
        let direction = self.step.signum();
        let ahead = ((self.first - value) * direction).rem_euclid(self.step.abs());
        value + ahead * direction
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn fresh(start: i64, increment: i64) -> Reality {
        Reality {
            start,
            increment,
            min: i64::MIN,
            max: i64::MAX,
            cycle: false,
            last_value: start,
            is_called: false,
        }
    }

    fn serial(offset: u16) -> Intent {
        Intent { anchor: 1, increment: 1, stride: STRIDE, offset }
    }

    fn apply(mut reality: Reality, plan: &[Action]) -> Reality {
        for action in plan {
            match *action {
                Action::Increment(value) => reality.increment = value,
                Action::Start(value) => reality.start = value,
                Action::Min(value) => reality.min = value,
                Action::Max(value) => reality.max = value,
                Action::Next(value) => {
                    reality.last_value = value;
                    reality.is_called = false;
                }
            }
        }
        assert!((reality.min..=reality.max).contains(&reality.start));
        assert!((reality.min..=reality.max).contains(&reality.last_value));
        reality
    }

    /// PostgreSQL's `nextval`; `None` at the end of a sequence that does not cycle.
    fn nextval(reality: &mut Reality) -> Option<i64> {
        if reality.is_called {
            let next = reality.last_value.checked_add(reality.increment);
            let next = next.filter(|next| (reality.min..=reality.max).contains(next));
            let begin = if reality.increment > 0 { reality.min } else { reality.max };
            reality.last_value = next.or(reality.cycle.then_some(begin))?;
        }
        reality.is_called = true;
        Some(reality.last_value)
    }

    #[test]
    fn a_serial_is_dealt_out() {
        assert_eq!(plan(&serial(0), &fresh(1, 1)).unwrap(), [Action::Increment(16)]);
        let node_3 = plan(&serial(2), &fresh(1, 1)).unwrap();
        assert_eq!(node_3, [Action::Increment(16), Action::Start(3), Action::Next(3)]);
        let mut reality = apply(fresh(1, 1), &node_3);
        let drawn: Vec<_> = (0..3).map(|_| nextval(&mut reality).unwrap()).collect();
        assert_eq!(drawn, [3, 19, 35]);
    }

    #[test]
    fn numbers_given_out_before_stay_behind() {
        let used = Reality { last_value: 40, is_called: true, ..fresh(1, 1) };
        let mut reality = apply(used, &plan(&serial(1), &used).unwrap());
        assert_eq!(nextval(&mut reality), Some(50));
        // 34 is of the class and was given out: the next one is a whole step further.
        let used = Reality { last_value: 34, is_called: true, ..fresh(1, 1) };
        let mut reality = apply(used, &plan(&serial(1), &used).unwrap());
        assert_eq!(nextval(&mut reality), Some(50));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tiny = Reality { min: 1, max: 3, ..fresh(1, 1) };
        let refused = Unplannable::Exhausted { min: 1, max: 3, needed: 4 };
        assert_eq!(plan(&serial(3), &tiny), Err(refused));
        let huge = Intent { increment: i64::MAX / 2, ..serial(0) };
        assert!(matches!(plan(&huge, &fresh(1, 1)), Err(Unplannable::IncrementTooLarge { .. })));
        let still = Intent { increment: 0, ..serial(0) };
        assert!(matches!(plan(&still, &fresh(1, 1)), Err(Unplannable::Senseless { .. })));
    }

    fn increments() -> impl Strategy<Value = i64> {
        prop_oneof![1i64..50, -50i64..=-1]
    }

    fn realities() -> impl Strategy<Value = (Intent, Reality)> {
        let intent = (-2000i64..2000, increments(), 1u16..=16).prop_flat_map(
            |(anchor, increment, stride)| {
                (0..stride).prop_map(move |offset| Intent { anchor, increment, stride, offset })
            },
        );
        (intent, any::<bool>(), any::<bool>(), -100_000i64..100_000, any::<bool>()).prop_map(
            |(intent, cycle, is_called, last_value, aligned_before)| {
                let increment = if aligned_before {
                    intent.increment * i64::from(intent.stride)
                } else {
                    intent.increment
                };
                let (min, max) = (-100_000, 100_000);
                let start = intent.anchor;
                (intent, Reality { start, increment, min, max, cycle, last_value, is_called })
            },
        )
    }

    proptest! {
        #[test]
        fn an_applied_plan_leads_to_an_empty_one((intent, reality) in realities()) {
            if let Ok(actions) = plan(&intent, &reality) {
                prop_assert_eq!(plan(&intent, &apply(reality, &actions)), Ok(vec![]));
            }
        }

        #[test]
        fn no_number_is_given_out_again((intent, reality) in realities()) {
            let Ok(actions) = plan(&intent, &reality) else { return Ok(()) };
            prop_assume!(!reality.cycle);
            let mut aligned = apply(reality, &actions);
            let Some(drawn) = nextval(&mut aligned) else { return Ok(()) };
            let ahead = (drawn - reality.last_value) * intent.increment.signum();
            prop_assert!(ahead >= i64::from(reality.is_called));
            prop_assert!(ahead <= intent.increment.abs() * i64::from(intent.stride));
        }

        #[test]
        fn the_classes_of_different_nodes_never_meet(
            (intent, reality) in realities(),
            others in proptest::collection::vec((-100_000i64..100_000, any::<bool>()), 16),
        ) {
            let mut drawn = BTreeSet::new();
            for offset in 0..intent.stride {
                let (last_value, is_called) = others[usize::from(offset)];
                let intent = Intent { offset, ..intent };
                let reality = Reality { last_value, is_called, ..reality };
                let Ok(actions) = plan(&intent, &reality) else { continue };
                let mut reality = apply(reality, &actions);
                let own: BTreeSet<i64> = (0..300).map_while(|_| nextval(&mut reality)).collect();
                prop_assert!(own.is_disjoint(&drawn));
                drawn.extend(own);
            }
        }

        #[test]
        fn the_whole_range_of_bigint_is_planned_without_overflow(
            anchor: i64, increment: i64, stride: u16, offset: u16, last_value: i64, cycle: bool,
        ) {
            let intent = Intent { anchor, increment, stride, offset };
            let _ = plan(&intent, &Reality { last_value, cycle, ..fresh(anchor, increment) });
        }
    }
}
