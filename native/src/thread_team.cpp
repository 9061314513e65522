#include "persia/thread_team.h"

namespace persia {

ThreadTeam::ThreadTeam(unsigned size) : errors_(size == 0 ? 1 : size) {
    for (unsigned i = 1; i < size; ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadTeam::~ThreadTeam() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    begin_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::attempt(unsigned index) {
    errors_[index] = nullptr;
    try {
        (*job_)(index);
    } catch (...) {
        errors_[index] = std::current_exception();
    }
}

void ThreadTeam::run(const std::function<void(unsigned)>& job) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        job_ = &job;
        running_ = static_cast<unsigned>(threads_.size());
        ++round_;
    }
    begin_.notify_all();
    attempt(0);
    std::unique_lock<std::mutex> lock(mutex_);
    end_.wait(lock, [this] { return running_ == 0; });
    for (const std::exception_ptr& error : errors_) {
        if (error) std::rethrow_exception(error);
    }
}

void ThreadTeam::work(unsigned index) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        begin_.wait(lock, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
        lock.unlock();
        attempt(index);
        lock.lock();
        if (--running_ == 0) end_.notify_one();
    }
}

}  // namespace persia
