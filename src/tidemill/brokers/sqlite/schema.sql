-- One file holds everything. Events are appended once, to the log; what a subscription has handled is a position
-- in it, and only what is out of line gets a row of its own: a log, cursors, and a table of exceptions. Publishing
-- costs one row however many subscriptions there are, and settling a batch in order costs one update.

create table tidemill_topic (
    id      integer primary key,
    name    text not null unique,
    key     text,                   -- the field that orders its events
    retain  real not null           -- seconds that settled events stay readable
);

create table tidemill_log (
    seq           integer primary key,  -- in commit order, as there is one writer at a time
    topic         integer not null,
    slot          integer not null,     -- 0..31, from the key: what consumers share out among themselves
    id            text not null,
    source        text not null,
    type          text not null,
    version       integer not null,
    time          integer not null,     -- when it happened, as its producer says
    stored        integer not null,     -- when it was published, by this machine's clock: what ages
    key           text,
    correlation   text,                 -- null: the event's own id; '': none
    causation     text,
    content_type  text,                 -- null: application/json
    extensions    blob,                 -- JSON object; null: none
    body          blob not null
);
create index tidemill_log_topic on tidemill_log (topic);
create unique index tidemill_log_identity on tidemill_log (id, source, topic);

-- Events published with a delay. They enter the log when they are due, whichever process is alive then.
create table tidemill_scheduled (
    n             integer primary key,
    due           integer not null,
    topic         integer not null,
    slot          integer not null,
    id            text not null,
    source        text not null,
    type          text not null,
    version       integer not null,
    time          integer not null,
    stored        integer not null,     -- the due time: when it enters the log
    key           text,
    correlation   text,
    causation     text,
    content_type  text,
    extensions    blob,
    body          blob not null
);
create index tidemill_scheduled_due on tidemill_scheduled (due);
create unique index tidemill_scheduled_identity on tidemill_scheduled (id, source, topic);

create table tidemill_subscription (
    id          integer primary key,
    name        text not null unique,
    topic       integer not null,
    types       text,                         -- JSON array of the event types it wants; null: all
    ordered     integer not null,
    first       integer not null,             -- it began after this seq
    generation  integer not null default 0,   -- changes when consumers or slots do, or it is paused
    touched     integer not null default 0,   -- changes when others than its consumers change its exceptions
    paused      integer not null default 0,
    acked       integer not null default 0,
    retried     integer not null default 0
);

-- Open feeds. One that is dead, or past its lease, is removed by any other.
create table tidemill_consumer (
    subscription  integer not null,
    owner         text not null,
    lease         integer not null,           -- the machine's monotonic clock, nanoseconds
    leaving       integer not null default 0, -- it gives its slots away, and takes none
    types         text,                       -- JSON array of the event types its code takes; null: all
    primary key (subscription, owner)
) without rowid;

-- Who consumes which slot, and how far it is: every event of the slot up to `position` is settled or an exception.
create table tidemill_slot (
    subscription  integer not null,
    slot          integer not null,
    position      integer not null,
    owner         text,
    epoch         integer not null default 0, -- changes with every owner: what fences a late settlement
    primary key (subscription, slot)
) without rowid;

-- Events at or before their slot's position that are not settled.
create table tidemill_exception (
    subscription  integer not null,
    seq           integer not null,
    slot          integer not null,
    key           text,                       -- of ordered subscriptions only
    attempts      integer not null,           -- failed so far
    due           integer,                    -- when to deliver; null: running, or waiting behind its key;
                                              -- 1 << 62, never: a dead letter its key waits for
    history       blob,
    died          integer not null default 0, -- the next attempt has been begun, by a consumer that died
    primary key (subscription, seq)
) without rowid;
create index tidemill_exception_due on tidemill_exception (subscription, due) where due is not null;
create index tidemill_exception_waiting on tidemill_exception (subscription, slot) where due is null;
create index tidemill_exception_key on tidemill_exception (subscription, key, seq) where key is not null;

-- What took more than one attempt to be acknowledged: for those who ask what happened.
create table tidemill_recovered (
    subscription  integer not null,
    seq           integer not null,
    attempts      integer not null,
    history       blob,
    primary key (subscription, seq)
) without rowid;

-- What was given up: of an event that the log keeps for as long as it is here. One that its key waits for, which is
-- parked, has its row among the exceptions too.
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
