//! Records queued work as a CUDA graph.  After a failure the stream is usable again.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::CudaGraph;
use candle_core::cuda::cudarc::driver::result::{graph, stream};
use candle_core::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use candle_core::{Error, Result, bail};

use super::engine::Engine;

impl Engine {
    /// Records the work that `queue` queues as a graph, without running it.  The inner error says why there is no
    /// graph; the stream is then in the same state as before.
    ///
    /// # Errors
    /// The stream cannot leave the capture mode, so nothing can run on it any more.
    pub fn capture<E: From<Error>>(
        &self,
        queue: impl FnOnce() -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<CudaGraph, E>> {
        let graph = self.recorded(queue);
        self.leave_capture()?;
        // Ending a capture may have stored errors in cudarc again; they do not concern later calls.
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
        // cudarc stores the error of a free that the capture refused, and returns it from the next call.  It is taken
        // out here, so that `end_capture` really ends the capture.
        self.stream.context().check_err().w()?;
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        match self.stream.end_capture(flags).w()? {
            Some(graph) => Ok(graph),
            None => Err(Error::Msg("nothing was captured".into()).into()),
        }
    }

    /// Ends a capture that is still active, valid or not.  This uses the driver's functions directly: cudarc's
    /// functions would first return stored errors of tensors that were freed during a broken capture, and not end the
    /// capture.
    fn leave_capture(&self) -> Result<()> {
        let handle = self.stream.cu_stream();
        // SAFETY: the stream lives as long as the engine; nothing else refers to a graph that is returned.
        unsafe {
            if stream::is_capturing(handle).w()? == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
                return Ok(());
            }
            // For a broken capture the driver returns an error instead of a graph, but ends the capture as well.
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
