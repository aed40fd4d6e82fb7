//! Recording what is queued as a CUDA graph, so that a failure leaves a stream that works.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::CudaGraph;
use candle_core::cuda::cudarc::driver::result::{graph, stream};
use candle_core::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use candle_core::{Error, Result, bail};

use super::engine::Engine;

impl Engine {
    /// What `queue` queues, as a graph; none of it runs.  The inner error says why there is no graph: the stream is then
    /// as it was before.
    ///
    /// # Errors
    /// The stream cannot be brought out of the capture, so nothing can run on it any more.
    pub fn capture<E: From<Error>>(
        &self,
        queue: impl FnOnce() -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<CudaGraph, E>> {
        let graph = self.recorded(queue);
        self.leave_capture()?;
        // Ending a capture may have stored errors again, and none of them is about what comes next.
        let _ = self.stream.context().check_err();
        Ok(graph)
    }

    fn recorded<E: From<Error>>(
        &self,
        queue: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<CudaGraph, E> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).w()?;
        self.while_capturing(queue)?;
        // A free that the capture refused is stored by cudarc and returned by whatever is called next: taken here, so
        // that `end_capture` ends the capture.
        self.stream.context().check_err().w()?;
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        match self.stream.end_capture(flags).w()? {
            Some(graph) => Ok(graph),
            None => Err(Error::Msg("nothing was captured".into()).into()),
        }
    }

    /// Ends a capture that still goes on, whatever has become of it.  By the driver's own calls: cudarc's first return
    /// the errors that tensors freed on a broken capture left behind, and end nothing.
    fn leave_capture(&self) -> Result<()> {
        let handle = self.stream.cu_stream();
        // SAFETY: the stream lives as long as the engine; a graph that comes out belongs to nobody else.
        unsafe {
            if stream::is_capturing(handle).w()? == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
                return Ok(());
            }
            // A broken capture gives an error instead of a graph, and is over all the same.
            if let Ok(unused) = stream::end_capture(handle)
                && !unused.is_null()
            {
                graph::destroy(unused).w()?;
            }
            match stream::is_capturing(handle).w()? {
                CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
                status => bail!("expected that the stream is not captured any more, found {status:?}"),
            }
        }
    }
}
