"""What runs notebooks and flows, and what keeps arrays and files."""

from .library import Library

NOTEBOOK = """
import nbformat

def notebook(seconds):
    cell = nbformat.v4.new_code_cell(f"import time; time.sleep({seconds}); 'waited'")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
"""

LIBRARIES = {
    "nbclient": Library(
        package="nbclient",
        does="`NotebookClient.execute`",
        setup=NOTEBOOK
        + """
from nbclient import NotebookClient

def use(seconds):
    if seconds > 10:
        print("waits", flush=True)
    return NotebookClient(notebook(seconds)).execute().cells[0].outputs[0]["data"]["text/plain"]
""",
        gives="'waited'",
        by=("%%thread",),
        cleans_up=False,
    ),
    "papermill": Library(
        package="papermill",
        does="`execute_notebook`",
        setup=NOTEBOOK
        + """
import papermill

def use(seconds):
    nbformat.write(notebook(seconds), "FOLDER/in.ipynb")
    if seconds > 10:
        print("waits", flush=True)
    done = papermill.execute_notebook("FOLDER/in.ipynb", "FOLDER/out.ipynb", progress_bar=False)
    return done.cells[-1].outputs[0]["data"]["text/plain"]
""",
        gives="'waited'",
        by=("%%thread",),
        cleans_up=False,
    ),
    "Prefect": Library(
        package="prefect",
        does="a flow of async tasks, called from a plain function",
        setup="""
import os
os.environ["PREFECT_HOME"] = "FOLDER/home"
os.environ["PREFECT_API_URL"] = "ORCHESTRATOR/api"
os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
from prefect import flow, task

@task
async def step(seconds):
    return await wait(seconds)

@flow
async def steps(seconds):
    return await step(seconds)

async def use(seconds):
    return await steps(seconds)
""",
        gives="waited",
        by=("run", "%%thread", "the patch"),
        asynchronous=True,
    ),
    "zarr": Library(
        package="zarr",
        does="arrays, which wait for a loop of its own",
        setup="""
import zarr
from zarr.core.sync import sync

def use(seconds):
    array = zarr.create_array(store={}, shape=(4,), dtype="i4")
    array[:] = 3
    sync(wait(seconds))
    return int(array[:].sum())
""",
        gives=12,
        by=("%%thread",),
        goes_on=True,
    ),
    "fsspec": Library(
        package="fsspec",
        does="a file system, which waits for a loop of its own",
        setup="""
import fsspec, fsspec.asyn

class Files(fsspec.asyn.AsyncFileSystem):
    async def _cat_file(self, path, start=None, end=None, **kwargs):
        return (await wait(float(path))).encode()

files = Files()

def use(seconds):
    return files.cat_file(str(seconds)).decode()
""",
        gives="waited",
        by=("%%thread",),
        goes_on=True,
    ),
}
