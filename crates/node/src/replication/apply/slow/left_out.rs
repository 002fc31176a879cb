//! TOASTed values that an update left out, since it did not change them, and that the row here does not have.

use synapsedb_core::change::{Tuple, Value};

use super::super::lane::Lane;
use super::{Settled, Trouble};
use crate::replication::row_of;

impl Lane<'_> {
    /// What the update left out, since it did not change it, and what the row here does not have: asked of the origin.
    pub(super) async fn fetch_left_out(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
    ) -> Settled<Vec<Option<String>>> {
        let described = &self.plans[plan];
        let keys = described.columns.iter().zip(new).filter(|(column, _)| column.key);
        let key = keys.filter_map(|(column, value)| match value {
            Value::Text(text) => {
                Some((column.local.name.clone(), String::from_utf8_lossy(text).into_owned()))
            }
            Value::Null | Value::Unchanged | Value::Binary(_) => None,
        });
        let asked = row_of::Asked {
            schema: described.schema.clone(),
            table: described.name.clone(),
            key: key.collect(),
        };
        let answered = row_of::ask(self.shared, self.source.origin, &asked).await;
        let mut answered = answered.map_err(|error| {
            Trouble::row(format!(
                "the update left out TOASTed values that it did not change, the row here has others, and node {} \
                 cannot be asked for them: {error:#}",
                self.source.origin
            ))
        })?;
        let columns = self.plans[plan].columns.iter();
        Ok(columns.map(|column| answered.remove(&column.local.name).flatten()).collect())
    }
}

/// The values as the stream would have them.
pub(super) fn texts(values: &[Option<String>]) -> Tuple<'_> {
    let texts = values.iter().map(Option::as_deref);
    texts.map(|text| text.map_or(Value::Null, |text| Value::Text(text.as_bytes()))).collect()
}
