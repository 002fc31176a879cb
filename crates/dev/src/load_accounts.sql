-- The writers whose balance is not the sum of their rows.
select a.node, a.writer, a.balance, coalesce(sum(h.delta), 0)
from load_account a
left join load_history h using (node, writer)
group by a.node, a.writer, a.balance
having a.balance <> coalesce(sum(h.delta), 0)
