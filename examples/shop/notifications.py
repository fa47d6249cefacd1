"""The notifications service: a confirmed payment becomes an e-mail, over SMTP."""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage

from contracts import PaymentConfirmed

from tidemill import Context, Reject, RetryPolicy, Service

SMTP_SERVER = os.environ.get("SHOP_SMTP", "127.0.0.1:1025")

service = Service("notifications")

# Mail servers ask for minutes of patience, and the defaults have it (8 attempts in a quarter of an hour). Here
# an address that never stops bouncing is to become a dead letter while you watch: 5 attempts within 4 seconds.
BOUNCING = RetryPolicy(attempts=5, base=0.5, factor=2, cap=2)


@service.on(PaymentConfirmed, retry=BOUNCING, timeout=20)
def send_receipt(event: PaymentConfirmed, ctx: Context) -> None:  # a plain `def` runs in a thread: smtplib blocks
    if "@" not in event.email:
        raise Reject(f"no address to send to: {event.email!r}")  # a dead letter now, never retried

    mail = EmailMessage()
    mail["From"] = "Tide Shop <receipts@shop.example>"
    mail["To"] = event.email
    mail["Subject"] = f"Payment {event.payment_id}: {event.amount} {event.currency}"
    # The same for every attempt at this event. If we die between sending and acknowledging, the e-mail is sent
    # again, and mailboxes recognise it.
    mail["Message-ID"] = f"<{ctx.message.id}@{ctx.message.source}.shop.example>"
    mail.set_content(f"Thank you. We received {event.amount} {event.currency}.\n")

    try:
        send(mail, event.email)
    except smtplib.SMTPRecipientsRefused as refused:
        code, answer = refused.recipients[event.email]
        if code >= 500:  # 5xx is for ever; every other exception, 4xx included, is retried
            raise Reject(f"{event.email} is refused for good: {code} {answer.decode(errors='replace')}") from None
        raise


def send(mail: EmailMessage, address: str) -> None:
    host, port = SMTP_SERVER.rsplit(":", 1)
    # Without a name of ours smtplib asks the DNS for one, which may take seconds.
    with smtplib.SMTP(host, int(port), local_hostname="localhost", timeout=10) as smtp:
        smtp.send_message(mail, to_addrs=address)
