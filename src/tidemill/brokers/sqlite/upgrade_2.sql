-- From schema 1 to 2: dead letters become resolvable, and refer to the log instead of copying the event.

alter table tidemill_subscription add column touched integer not null default 0;
alter table tidemill_subscription add column paused integer not null default 0;
alter table tidemill_consumer add column leaving integer not null default 0;
alter table tidemill_consumer add column types text;
alter table tidemill_exception add column died integer not null default 0;
create index tidemill_exception_waiting on tidemill_exception (subscription, slot) where due is null;

alter table tidemill_dead_letter rename to tidemill_dead_letter_1;

create table tidemill_dead_letter (
    n             integer primary key autoincrement,  -- what people resolve it by: never that of another one
    subscription  integer not null,
    seq           integer not null,
    reason        text not null,
    attempts      integer not null,
    at            integer not null,
    history       blob,
    unique (subscription, seq)
);

-- What retention had removed enters the log again, where it stood. When it was published is not known any more. Where
-- the same event was published again since, that one stands for it. One without a key gets a slot in which everybody
-- is past it already, as in the one that it had: it is settled, and must not come again.
insert into tidemill_log (seq, topic, slot, id, source, type, version, time, stored, key, correlation, causation,
                          content_type, extensions, body)
select d.seq, s.topic,
       coalesce(slot_of(d.key),
                (select p.slot from tidemill_slot p join tidemill_subscription o on o.id = p.subscription
                 where o.topic = s.topic group by p.slot order by min(p.position) desc, p.slot limit 1)),
       d.id, d.source, d.type, d.version, d.time, d.at, d.key, d.correlation,
       d.causation, d.content_type, d.extensions, d.body
from tidemill_dead_letter_1 d join tidemill_subscription s on s.id = d.subscription
where true
on conflict do nothing;

-- One event that a subscription gave up twice, having been published twice, is one dead letter: the later.
insert or replace into tidemill_dead_letter (n, subscription, seq, reason, attempts, at, history)
select d.n, d.subscription, l.seq, d.reason, d.attempts, d.at, d.history
from tidemill_dead_letter_1 d join tidemill_subscription s on s.id = d.subscription
     join tidemill_log l on l.id = d.id and l.source = d.source and l.topic = s.topic
order by d.n;

drop table tidemill_dead_letter_1;

create index tidemill_dead_letter_seq on tidemill_dead_letter (seq);

-- Here and not in the statement that removes old events, as a program of schema 1 may still have the file open.
create trigger tidemill_keep_dead_letters before delete on tidemill_log
when exists (select 1 from tidemill_dead_letter where seq = old.seq)
begin
    select raise(ignore);
end;

-- Who replayed or discarded which dead letter: a line each, with what was known of it.
create table tidemill_resolution (
    n             integer primary key,
    at            integer not null,
    action        text not null,              -- replay or discard
    by            text not null,
    letter        integer not null,           -- the number it had
    subscription  integer not null,
    seq           integer not null,
    id            text not null,
    source        text not null,
    type          text not null,
    key           text,
    reason        text not null,
    attempts      integer not null
);
create index tidemill_resolution_event on tidemill_resolution (subscription, seq);
