//! What is counted, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::pipeline::Prediction;

/// All counters; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_time: Family<RouteLabels, Histogram>,
    predictions: Counter,
    failures: Counter,
    detections: Counter,
    regions: Counter,
    detector_time: Histogram,
    segmenter_time: Histogram,
    waiting: Gauge,
    ready: Gauge<f64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Seconds: from a health check to a batch at its deadline.
const REQUEST_BUCKETS: [f64; 9] = [0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 40.0, 100.0];
/// Seconds: from the demo models to a huge one on a small CPU.
const MODEL_BUCKETS: [f64; 9] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("groundling");
        let histogram = || Histogram::new(MODEL_BUCKETS);
        let request_time: Family<RouteLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        let requests = Family::default();
        let (predictions, failures) = (Counter::default(), Counter::default());
        let (detections, regions) = (Counter::default(), Counter::default());
        let (detector_time, segmenter_time) = (histogram(), histogram());
        let (waiting, ready) = (Gauge::default(), Gauge::default());
        registry.register("requests", "HTTP requests answered", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time to answer a request",
            Unit::Seconds,
            request_time.clone(),
        );
        registry.register(
            "predictions",
            "Images that the models looked at",
            predictions.clone(),
        );
        registry.register(
            "prediction_failures",
            "Tasks of a batch, and interactive requests, without a prediction",
            failures.clone(),
        );
        registry.register("detections", "Objects found", detections.clone());
        registry.register("regions", "Regions answered", regions.clone());
        registry.register_with_unit(
            "detector_duration",
            "Time of the detector for an image",
            Unit::Seconds,
            detector_time.clone(),
        );
        registry.register_with_unit(
            "segmenter_duration",
            "Time of the segmenter for an image, where there was something to segment",
            Unit::Seconds,
            segmenter_time.clone(),
        );
        registry.register(
            "waiting",
            "Predictions that wait for the models",
            waiting.clone(),
        );
        registry.register("ready", "Whether the models are loaded", ready.clone());
        Self {
            registry: Arc::new(registry),
            requests,
            request_time,
            predictions,
            failures,
            detections,
            regions,
            detector_time,
            segmenter_time,
            waiting,
            ready,
        }
    }
}

impl Metrics {
    /// A request was answered; `route` is one of the server's own.
    pub fn request(&self, route: &str, status: u16, time: Duration) {
        let labels = RequestLabels {
            route: route.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
        let route = route.to_owned();
        let histogram = self.request_time.get_or_create(&RouteLabels { route });
        histogram.observe(time.as_secs_f64());
    }

    /// The models looked at an image.
    pub fn predicted(&self, prediction: &Prediction) {
        self.predictions.inc();
        self.detections.inc_by(prediction.objects.len() as u64);
        self.detector_time
            .observe(prediction.detector_time.as_secs_f64());
        if !prediction.segmenter_time.is_zero() {
            self.segmenter_time
                .observe(prediction.segmenter_time.as_secs_f64());
        }
    }

    /// Regions go out.
    pub fn regions(&self, count: usize) {
        self.regions.inc_by(count as u64);
    }

    /// A task got no prediction.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// Everything in Prometheus' text format, with the state of the queue as it is now.
    ///
    /// # Errors
    /// If the text cannot be written.
    pub fn render(&self, waiting: usize, is_ready: bool) -> Result<String, std::fmt::Error> {
        self.waiting.set(waiting as i64);
        self.ready.set(f64::from(u8::from(is_ready)));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
