//! Follows the orders of a shop: what each customer owes and has paid, with an event when an order is paid.
//!
//! A source is a till; a reading says what has become of one order. Readings may come twice and late: an order that is paid stays paid.

use serde::{Deserialize, Serialize};
use watchpost::contract::observation::Observation;
use watchpost::observe::typed::{Declared, Error, Observer, Rows, State, Table};

/// The observer.
#[derive(Debug)]
pub struct Orders;

/// Every order, by its number.
pub const ORDERS: Table<Order> = Table::new("orders");
/// What each customer has ordered, by name.
pub const CUSTOMERS: Table<Customer> = Table::new("customers").coalesced();

/// What has become of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits to be paid.
    Placed,
    /// It is paid for good.
    Paid,
    /// It is called off for good.
    Cancelled,
}

/// What a till says, and what is kept of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub order: String,
    /// Who ordered.
    pub customer: String,
    /// What it costs.
    pub cents: u64,
    /// What has become of it.
    pub status: Status,
}

/// What a customer has ordered, in cents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Customer {
    /// Placed and not paid.
    pub owes: u64,
    /// Paid.
    pub paid: u64,
}

/// What it announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An order was paid.
    OrderPaid {
        /// Its number.
        order: String,
        /// Who paid.
        customer: String,
        /// How much.
        cents: u64,
    },
}

/// What a snapshot shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Books {
    /// What all customers owe, in cents.
    pub owed: u64,
    /// What all customers have paid, in cents.
    pub paid: u64,
}

impl Observer for Orders {
    const NAME: &'static str = "orders";
    const FEED: &'static str = "orders";
    const VERSION: u32 = 1;
    const TABLES: &'static [Declared] = &[ORDERS.declared(), CUSTOMERS.declared()];
    type Reading = Order;
    type Event = Event;
    type View = Books;

    fn observe(&self, _: &Observation, order: Order, state: &mut State<'_, '_, Self>) -> Result<(), Error> {
        let before = state.get(ORDERS, &order.order)?;
        let mut customer = state.get(CUSTOMERS, &order.customer)?.unwrap_or_default();
        match &before {
            Some(known) if (&known.customer, known.cents) != (&order.customer, order.cents) => {
                return Err(Error::reject(format!(
                    "order {} is known as {} cents of {}, found {} cents of {}",
                    order.order, known.cents, known.customer, order.cents, order.customer
                )));
            }
            // Paid and cancelled are for good, and the same again is no news.
            Some(known) if known.status != Status::Placed || order.status == Status::Placed => return Ok(()),
            Some(_) => customer.owes -= order.cents,
            None => {}
        }
        let overflow = || {
            Error::reject(format!("the account of {} overflows with {} cents", order.customer, order.cents))
        };
        match order.status {
            Status::Placed => customer.owes = customer.owes.checked_add(order.cents).ok_or_else(overflow)?,
            Status::Paid => {
                customer.paid = customer.paid.checked_add(order.cents).ok_or_else(overflow)?;
                let Order { order, customer, cents, .. } = order.clone();
                state.emit(&Event::OrderPaid { order, customer, cents })?;
            }
            Status::Cancelled => {}
        }
        state.put(CUSTOMERS, &order.customer, &customer)?;
        state.put(ORDERS, &order.order, &order)
    }

    fn view(&self, rows: &Rows<'_>) -> Result<Option<Books>, Error> {
        let customers = rows.rows(CUSTOMERS, "")?.into_iter();
        Ok(Some(customers.fold(Books::default(), |books, (_, customer)| Books {
            owed: books.owed.saturating_add(customer.owes),
            paid: books.paid.saturating_add(customer.paid),
        })))
    }
}
