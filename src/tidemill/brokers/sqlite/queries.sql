-- Every statement the adapter runs, by name. Parameters are by position, or by name where one is used twice or
-- there are several of a kind. Where many exceptions wait for their time, SQLite would take the primary key and look
-- at all of them: there the index is named.

-- name: next_events
-- What follows a position in a topic, of the slots in a bit mask. Columns as `rows.to_message` takes them.
select seq, slot, id, source, type, time, body, version, key, correlation, causation, content_type, extensions
from tidemill_log
where topic = :topic and seq > :after and (:slots >> slot) & 1
order by seq limit :most

-- name: due_exceptions
select l.seq, l.slot, l.id, l.source, l.type, l.time, l.body, l.version, l.key, l.correlation, l.causation,
       l.content_type, l.extensions, x.attempts, x.history, x.died
from tidemill_exception x indexed by tidemill_exception_due join tidemill_log l on l.seq = x.seq
where x.subscription = :subscription and x.due <= :now and (:slots >> x.slot) & 1
  -- Not what is to be retried behind an earlier event of its key that waits: a replay may put one before it.
  and (x.due = 0 or x.key is null
       or not exists (select 1 from tidemill_exception e indexed by tidemill_exception_key
                      where e.subscription = :subscription and e.key = x.key and e.seq < x.seq
                        and (e.due is null or e.due > :now)))
order by x.seq limit :most

-- name: next_due
select min(due) from tidemill_exception
where subscription = :subscription and due is not null and due > :now and (:slots >> slot) & 1

-- name: waiting_keys
select key, count(*) from tidemill_exception
where subscription = :subscription and key is not null and (:slots >> slot) & 1 group by key

-- name: touched
select touched from tidemill_subscription where id = ?

-- name: touched_keys
-- Keys of what was resolved since, and how many of their events wait that the asking consumer does not hold.
select r.key, (select count(*) from tidemill_exception x where x.subscription = :subscription and x.key = r.key
               and x.seq not in (select value from json_each(:held)))
from (select distinct key from tidemill_resolution
      where n > :since and subscription = :subscription and key is not null) r

-- name: next_scheduled
select min(due) from tidemill_scheduled

-- name: generation
select generation, touched, paused from tidemill_subscription where id = ?

-- name: pause
update tidemill_subscription set paused = ?, generation = generation + 1 where name = ?

-- name: find_topic
select id from tidemill_topic where name = ?

-- name: add_topic
insert into tidemill_topic (name, key, retain) values (?, ?, ?) on conflict do nothing

-- name: find_subscription
select s.id, t.name, t.id, s.touched from tidemill_subscription s join tidemill_topic t on t.id = s.topic where s.name = ?

-- name: owners
select owner, lease, leaving from tidemill_consumer where subscription = ?

-- name: is_known
-- Whether a process, by its token, has consumers left: `.` and `/` enclose whatever follows the token.
select exists (select 1 from tidemill_consumer where owner > :token || '.' and owner < :token || '/')

-- name: slot_of_event
select slot from tidemill_log where seq = ?

-- name: open_up_to
-- What lies between a slot's position and a seq, of what the subscription wants, becomes a row of its own.
insert into tidemill_exception (subscription, seq, slot, key, attempts, due, history)
select s.id, l.seq, l.slot, case when s.ordered then l.key end, 0, null, null
from tidemill_subscription s join tidemill_log l on l.topic = s.topic
where s.id = :subscription and l.seq > :position and l.seq <= :last and l.slot = :slot
  and (:types is null or l.type in (select value from json_each(:types)))
on conflict do nothing

-- name: move_position
update tidemill_slot set position = :position
where subscription = :subscription and slot = :slot and position < :position

-- name: exception_of
select attempts, history, due from tidemill_exception where subscription = ? and seq = ?

-- name: charge
-- It was running, so it stays as due as it was: if the later ones of its key are due already, it comes before them.
update tidemill_exception set attempts = :attempts, history = :history, died = 1
where subscription = :subscription and seq = :seq

-- name: my_slots
select slot, epoch from tidemill_slot where subscription = :subscription and owner = :owner

-- name: advance
-- Everything of these slots up to a position is settled or an exception.
update tidemill_slot set position = :position
where subscription = :subscription and owner = :owner and position < :position and (:slots >> slot) & 1

-- name: count_settled
update tidemill_subscription set acked = acked + ?, retried = retried + ? where id = ?

-- name: put_exception
insert into tidemill_exception (subscription, seq, slot, key, attempts, due, history, died)
values (:subscription, :seq, :slot, :key, :attempts, :due, :history, :died)
on conflict (subscription, seq) do update
set attempts = excluded.attempts, due = excluded.due, history = excluded.history, died = excluded.died

-- name: put_gap
-- An event that still runs while a later one is settled. Never over what is known of it already.
insert into tidemill_exception (subscription, seq, slot, key, attempts, due, history)
values (?, ?, ?, ?, ?, null, null) on conflict do nothing

-- name: put_released
-- A released event waits where an earlier one of its key is an exception: it is let go when that one is settled.
insert into tidemill_exception (subscription, seq, slot, key, attempts, due, history, died)
values (:subscription, :seq, :slot, :key, :attempts,
        case when exists (select 1 from tidemill_exception
                          where subscription = :subscription and key = :key and seq < :seq) then null else :due end,
        :history, :died)
on conflict (subscription, seq) do update
set attempts = excluded.attempts, due = excluded.due, history = excluded.history, died = excluded.died

-- name: drop_exception
delete from tidemill_exception where subscription = ? and seq = ?

-- name: let_go
-- The next events of a key, unless one of them is to be retried first.
update tidemill_exception indexed by tidemill_exception_key set due = 0
where subscription = :subscription and key = :key and due is null
  and seq in (select seq from tidemill_exception indexed by tidemill_exception_key
              where subscription = :subscription and key = :key order by seq limit 64)
  and not exists (select 1 from tidemill_exception e where e.subscription = :subscription and e.key = :key
                  and e.seq < tidemill_exception.seq and e.due > :now)

-- name: touch
-- Its consumers look again at what others have changed: see `touched_keys`.
update tidemill_subscription set touched = (select max(n) from tidemill_resolution) where id = ?

-- name: hold_back
-- What was let go behind an event that is given back or to be retried waits behind it again.
update tidemill_exception indexed by tidemill_exception_key set due = null
where subscription = :subscription and key = :key and seq > :seq and due = 0

-- name: put_recovered
insert or replace into tidemill_recovered (subscription, seq, attempts, history) values (?, ?, ?, ?)

-- name: put_dead_letter
insert or replace into tidemill_dead_letter (subscription, seq, reason, attempts, at, history)
values (:subscription, :seq, :reason, :attempts, :at, :history)

-- name: find_dead_letter
select d.subscription, d.seq, l.slot, coalesce(x.key, case when s.ordered then l.key end), d.history, p.position, s.name,
       x.seq is not null, l.id, l.source, l.type, l.key, d.reason, d.attempts
from tidemill_dead_letter d join tidemill_log l on l.seq = d.seq join tidemill_subscription s on s.id = d.subscription
     join tidemill_slot p on p.subscription = d.subscription and p.slot = l.slot
     left join tidemill_exception x on x.subscription = d.subscription and x.seq = d.seq
where d.n = ?

-- name: drop_dead_letter
delete from tidemill_dead_letter where n = ?

-- name: put_resolution
insert into tidemill_resolution (at, action, by, letter, subscription, seq, id, source, type, key, reason, attempts)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: resolutions
select r.n, r.at, r.action, r.by, r.letter, s.name, r.id, r.source, r.type, r.key, r.reason, r.attempts
from tidemill_resolution r join tidemill_subscription s on s.id = r.subscription
where (r.n < :before or :before is null)
  and substr(s.name, 1, length(:prefix)) = :prefix and instr(substr(s.name, length(:prefix) + 1), '/') = 0
order by r.n desc limit :most

-- name: join
insert into tidemill_consumer (subscription, owner, lease, types) values (?, ?, ?, ?)
on conflict (subscription, owner) do update set lease = excluded.lease

-- name: renew
update tidemill_consumer set lease = ? where subscription = ? and owner = ?

-- name: leaving
update tidemill_consumer set leaving = 1 where subscription = ? and owner = ?

-- name: leave
delete from tidemill_consumer where subscription = ? and owner = ?

-- name: free_slots_of
update tidemill_slot set owner = null where subscription = ? and owner = ?

-- name: free_slots
update tidemill_slot set owner = null, position = max(position, :position)
where subscription = :subscription and owner = :owner and slot = :slot

-- name: unowned_slots
select slot from tidemill_slot where subscription = :subscription and owner is null order by slot

-- name: take_slot
update tidemill_slot set owner = :owner, epoch = epoch + 1 where subscription = :subscription and slot = :slot and owner is null

-- name: slots_taken
select slot, epoch, position from tidemill_slot where subscription = :subscription and owner = :owner

-- name: revive_unordered
-- Whatever the slot's last owner was running when it went is due.
update tidemill_exception indexed by tidemill_exception_waiting set due = 0
where subscription = :subscription and slot = :slot and due is null and key is null

-- name: revive_ordered
-- Of each key only its first event: the others wait behind it.
update tidemill_exception indexed by tidemill_exception_waiting set due = 0
where subscription = :subscription and slot = :slot and due is null and key is not null
  and not exists (select 1 from tidemill_exception e indexed by tidemill_exception_key
                  where e.subscription = :subscription and e.key = tidemill_exception.key
                    and e.seq < tidemill_exception.seq)

-- name: changed
update tidemill_subscription set generation = generation + 1 where id = ?

-- name: last_seq
select coalesce(max(seq), 0) from tidemill_log

-- name: seq_of
select seq from tidemill_log where id = ? and source = ? and topic = ?

-- name: schedule
insert into tidemill_scheduled (due, topic, slot, id, source, type, version, time, stored, key, correlation, causation,
                                content_type, extensions, body)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing

-- name: appear
insert into tidemill_log (topic, slot, id, source, type, version, time, stored, key, correlation, causation,
                          content_type, extensions, body)
select topic, slot, id, source, type, version, time, stored, key, correlation, causation, content_type, extensions, body
from tidemill_scheduled where due <= ? order by due, n limit 1000
on conflict do nothing

-- name: appeared
delete from tidemill_scheduled where n in (
    select n from tidemill_scheduled where due <= ? order by due, n limit 1000)

-- name: topics
select id, name, key, retain from tidemill_topic

-- name: put_topic
insert into tidemill_topic (name, key, retain) values (?, ?, ?)
on conflict (name) do update set key = excluded.key, retain = excluded.retain

-- name: subscriptions
select s.id, s.name, t.name, s.types, s.ordered, s.first, s.acked, s.retried, s.topic, s.paused
from tidemill_subscription s join tidemill_topic t on t.id = s.topic order by s.name

-- name: put_subscription
insert into tidemill_subscription (name, topic, types, ordered, first) values (?, ?, ?, ?, ?)

-- name: put_slot
insert into tidemill_slot (subscription, slot, position) values (?, ?, ?)

-- name: update_subscription
-- Consumers look again at what is wanted where the types are others.
update tidemill_subscription set generation = generation + (types is not :types), types = :types, ordered = :ordered
where id = :subscription

-- name: wanted
select types from tidemill_consumer where subscription = :subscription
union select types from tidemill_subscription where id = :subscription

-- name: rename_subscription
update tidemill_subscription set name = ? where id = ?

-- name: seq_before
-- The last event of a topic before the first one that was published at a time or later.
select coalesce((select min(seq) - 1 from tidemill_log where topic = :topic and stored >= :since),
                (select max(seq) from tidemill_log), 0)

-- name: count_messages
select count(*) from tidemill_log where topic = ?

-- name: count_scheduled
select count(*) from tidemill_scheduled where topic = ?

-- name: backlog
-- Events after their slot's position that the subscription wants: how many, and since when.
select count(*), min(l.stored)
from tidemill_log l join tidemill_slot s on s.subscription = :subscription and s.slot = l.slot
where l.topic = :topic and l.seq > (select min(position) from tidemill_slot where subscription = :subscription)
  and l.seq > s.position and (:types is null or l.type in (select value from json_each(:types)))

-- name: exceptions
-- Without parked ones, which count as dead letters.
select count(*), sum(x.attempts > 0), min(l.stored)
from tidemill_exception x join tidemill_log l on l.seq = x.seq
where x.subscription = ? and (x.due is null or x.due < 1 << 62)

-- name: count_dead
select count(*) from tidemill_dead_letter where subscription = ?

-- name: count_consumers
select count(*) from tidemill_consumer where subscription = ? and lease > ?

-- name: dead_letters
-- The next few after a number, of one subscription or of all of a namespace (its name's prefix).
select l.seq, l.slot, l.id, l.source, l.type, l.time, l.body, l.version, l.key, l.correlation, l.causation,
       l.content_type, l.extensions, s.name, t.name, d.n, d.reason, d.attempts, d.at, d.history,
       exists (select 1 from tidemill_exception x where x.subscription = d.subscription and x.seq = d.seq)
from tidemill_dead_letter d join tidemill_log l on l.seq = d.seq join tidemill_subscription s on s.id = d.subscription
     join tidemill_topic t on t.id = s.topic
where d.n > :after and (s.name = :subscription or :subscription is null)
  and substr(s.name, 1, length(:prefix)) = :prefix and instr(substr(s.name, length(:prefix) + 1), '/') = 0
order by d.n limit :most

-- name: read
select seq, slot, id, source, type, time, body, version, key, correlation, causation, content_type, extensions
from tidemill_log where topic = :topic and seq > :after and stored >= :since order by seq limit :most

-- name: flow
select l.seq, l.slot, l.id, l.source, l.type, l.time, l.body, l.version, l.key, l.correlation, l.causation,
       l.content_type, l.extensions, l.topic, t.name
from tidemill_log l join tidemill_topic t on t.id = l.topic
where l.correlation = :correlation or (l.id = :correlation) order by l.seq

-- name: fate_exception
select attempts, history from tidemill_exception where subscription = ? and seq = ?

-- name: fate_dead
select attempts, history, reason from tidemill_dead_letter where subscription = ? and seq = ?

-- name: fate_recovered
select attempts, history from tidemill_recovered where subscription = ? and seq = ?

-- name: fate_discarded
select attempts, reason from tidemill_resolution
where subscription = ? and seq = ? and action = 'discard' order by n desc limit 1

-- name: position_of
select position from tidemill_slot where subscription = ? and slot = ?

-- name: old_events
-- The next few events of a topic, and whether every subscription has settled them.
select l.seq, l.stored,
       not exists (select 1 from tidemill_subscription s join tidemill_slot p on p.subscription = s.id
                   where s.topic = :topic and p.slot = l.slot and p.position < l.seq)
       and not exists (select 1 from tidemill_subscription s join tidemill_exception x on x.subscription = s.id
                       where s.topic = :topic and x.seq = l.seq)
from tidemill_log l where l.topic = :topic and l.seq > :after order by l.seq limit 500

-- name: purge
-- What a dead letter refers to stays: see the trigger. The log's last event always stays: the next seq is counted from it, and positions must never run ahead.
delete from tidemill_log where seq = ? and seq < (select max(seq) from tidemill_log)

-- name: purge_recovered
delete from tidemill_recovered where seq = ?
