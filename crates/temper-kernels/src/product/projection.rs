//! Linear layers without a bias within operations: forward, and what their backward pass sends.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{NodeGuard, Ops};

use super::*;
use crate::sum::Place;

/// A linear layer without a bias, as an operation is given it.
#[derive(Debug, Clone, ExtensionType)]
pub enum Projection<B: Backend> {
    /// `x Wᵀ`.
    Plain(#[extension_type] Matrix<B>),
    /// `x Wᵀ + s·(x Aᵀ) Bᵀ`.
    Adapted {
        /// W `[out, in]`.
        #[extension_type]
        weight: Matrix<B>,
        /// A `[r, in]`.
        a: FloatTensor<B>,
        /// B `[out, r]`.
        b: FloatTensor<B>,
        /// s.
        scaling: f64,
    },
}

impl<B: ProductOps> Projection<B> {
    /// The product that it is, and s·x Aᵀ if it is adapted. `x` is [shared](ProductOps::shared).
    pub fn forward(self, x: FloatTensor<B>) -> (Pending<B>, Option<FloatTensor<B>>) {
        let way = Way::Forward;
        match self {
            Self::Plain(weight) => (Pending { x, weight, way, thin: Thin::Nothing }, None),
            Self::Adapted { weight, a, b, scaling } => {
                let lhs = B::operand(x.clone(), transposed::<B>(a), scaling);
                let thin = Thin::Product { lhs: lhs.clone(), rhs: transposed::<B>(b) };
                (Pending { x, weight, way, thin }, Some(lhs))
            }
        }
    }
}

/// A product that waits for what it is added to.
pub struct Pending<B: Backend> {
    x: FloatTensor<B>,
    weight: Matrix<B>,
    way: Way,
    thin: Thin<B>,
}

impl<B: ProductOps> Pending<B> {
    /// It and `begin`, for a reader.
    pub fn onto(self, begin: Begin<B>, reader: Reader) -> FloatTensor<B> {
        B::by_weight(begin, self.x, self.weight, self.way, self.thin, reader)
    }
}

impl<B: ProductOps, C: CheckpointStrategy> Projection<Autodiff<B, C>> {
    /// What of it may be tracked: W, A and B, and W in place of those that are not there. Nothing tracks the magnitudes of one in
    /// few bits.
    pub fn parents(&self) -> [FloatTensor<Autodiff<B, C>>; 3] {
        let (Self::Plain(weight) | Self::Adapted { weight, .. }) = self;
        let (Matrix::Dense(weight) | Matrix::Quantized { scales: weight, .. }) = weight;
        match self {
            Self::Plain(_) => [weight, weight, weight].map(Clone::clone),
            Self::Adapted { a, b, .. } => [weight, a, b].map(Clone::clone),
        }
    }

    /// The same without a graph.
    pub fn untracked(self) -> Untracked<B> {
        let [weight, ..] = self.parents();
        match self {
            Self::Plain(matrix) => {
                Untracked { projection: Projection::Plain(untracked(matrix)), keeps: weight.is_tracked() }
            }
            Self::Adapted { weight, a, b, scaling } => {
                let [a, b] = [a, b].map(|x| B::rounded(x.into_primitive()));
                let weight = untracked(weight);
                Untracked { projection: Projection::Adapted { weight, a, b, scaling }, keeps: true }
            }
        }
    }
}

fn untracked<B: Backend, C: CheckpointStrategy>(matrix: Matrix<Autodiff<B, C>>) -> Matrix<B> {
    match matrix {
        Matrix::Dense(values) => Matrix::Dense(values.into_primitive()),
        Matrix::Quantized { words, scales, layout } => {
            Matrix::Quantized { words, scales: scales.into_primitive(), layout }
        }
    }
}

/// What a product was added to.
#[derive(Debug, Clone, Copy)]
pub enum Addend {
    /// Nothing.
    Nothing,
    /// A matrix.
    Sum,
    /// The same in each row.
    Row,
}

impl<B: ProductOps, C: CheckpointStrategy> Begin<Autodiff<B, C>> {
    /// The same without a graph, what it is, and its node: that of `other` for nothing.
    pub fn untracked(self, other: &FloatTensor<Autodiff<B, C>>) -> (Begin<B>, Addend, NodeGuard) {
        match self {
            Self::Nothing => (Begin::Nothing, Addend::Nothing, other.node()),
            Self::Sum(sum) => {
                let (sum, node) = sum.into_parts();
                (Begin::Sum(sum), Addend::Sum, node)
            }
            Self::Row(row) => {
                let (row, node) = row.into_parts();
                (Begin::Row(row), Addend::Row, node)
            }
        }
    }
}

impl Addend {
    /// Sends its gradient to a parent, from that of the result.
    pub fn send<B: ProductOps, S, const N: usize>(
        self,
        ops: &Ops<S, N>,
        parent: usize,
        grad: &FloatTensor<B>,
        grads: &mut Gradients,
    ) {
        match (self, &ops.parents[parent]) {
            (Self::Sum, _) => {
                if let Some(place) = Place::<B>::of(ops, parent, grads) {
                    place.fill(grad.clone(), grads);
                }
            }
            (Self::Row, Some(node)) => {
                let grad = Float::<B>(grad.clone()).cast(FloatDType::F32);
                grads.register::<B>(node.id, B::sum_rows(grad.0));
            }
            _ => {}
        }
    }
}

/// A projection without its graph.
pub struct Untracked<B: Backend> {
    projection: Projection<B>,
    /// Whether the backward pass takes x.
    keeps: bool,
}

impl<B: ProductOps> Untracked<B> {
    /// The product that it is, and what its backward pass takes. `x` is [shared](ProductOps::shared).
    pub fn forward(self, x: FloatTensor<B>) -> (Pending<B>, Kept<B>) {
        let (y, thin) = self.projection.clone().forward(x.clone());
        (y, Kept { projection: self.projection, x: self.keeps.then_some(x), thin })
    }
}

/// What the backward pass of a projection takes.
#[derive(Debug, Clone)]
pub struct Kept<B: Backend> {
    projection: Projection<B>,
    x: Option<FloatTensor<B>>,
    /// s·x Aᵀ.
    thin: Option<FloatTensor<B>>,
}

impl<B: ProductOps> Kept<B> {
    /// Sends the gradients of W, A and B to their nodes, as far as they are tracked, from the result's. What comes back is the
    /// gradient of x.
    pub fn backward(
        self,
        grad: FloatTensor<B>,
        [of_weight, of_a, of_b]: [Option<NodeId>; 3],
        grads: &mut Gradients,
    ) -> Pending<B> {
        let grad = B::rounded(grad);
        let mut send = |node: Option<NodeId>, of_result: &FloatTensor<B>, input: Option<&FloatTensor<B>>| {
            if let (Some(node), Some(input)) = (node, input) {
                grads.register::<B>(node, B::product(transposed::<B>(of_result.clone()), input.clone(), 1.0));
            }
        };
        send(of_weight, &grad, self.x.as_ref());
        let (weight, thin) = match self.projection {
            Projection::Plain(weight) => (weight, Thin::Nothing),
            Projection::Adapted { weight, a, b, scaling } => {
                let of_thin = B::operand(grad.clone(), b, scaling);
                send(of_b, &grad, self.thin.as_ref());
                send(of_a, &of_thin, self.x.as_ref());
                (weight, Thin::Product { lhs: of_thin, rhs: a })
            }
        };
        Pending { x: grad, weight, way: Way::Back, thin }
    }
}
